"""From Python values to messages of the API, and back."""
