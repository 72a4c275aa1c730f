"""Profiles of the engine on demand: what its threads and its device did when, as a Chrome trace."""
