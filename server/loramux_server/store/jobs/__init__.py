"""Training jobs in the database, and their events."""
