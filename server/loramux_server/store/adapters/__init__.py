"""The adapter registry: references, rows and use of adapter versions."""
