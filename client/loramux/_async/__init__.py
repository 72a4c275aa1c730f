"""The parts of a client: connection, adapters, datasets, jobs."""
