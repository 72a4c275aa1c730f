"""The use cases: generate, manage adapters, train. Doors call these and nothing else; nothing here imports torch."""
