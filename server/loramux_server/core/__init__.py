"""Types, errors and protocols that every other part shares. Standard library only."""
