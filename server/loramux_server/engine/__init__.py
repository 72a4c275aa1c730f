"""The engine: sequences in, tokens out, one step at a time."""
