"""Usage: what a bill is written from, recorded and read."""
