"""Checkpoints of a job, how tensors get into them, and events that are reported once."""
