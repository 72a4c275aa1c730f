"""Training data: reading rows, checking them, label masks. No torch, so that the front can check data."""
