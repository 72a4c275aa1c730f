"""Hostile input by the million: see ``python -m tests.fuzz --help``."""
