"""Training data: reading rows, checking them, and their label masks. No torch, so that the front can check data."""
