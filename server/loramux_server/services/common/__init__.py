"""What all use cases share: checks of fields, stacks, uploads, deadlines, limits."""
