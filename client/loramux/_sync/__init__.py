# Generated from _async/__init__.py by tools/sync_client.py (make client); do not edit.
"""The parts of a client: connection, adapters, datasets, jobs."""
