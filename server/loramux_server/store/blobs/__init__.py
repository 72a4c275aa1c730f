"""Content-addressed files: in a local folder or behind an fsspec URL."""
