"""A task: tickets of a bicycle subscription are sorted into eight kinds."""
