"""Who calls, with which key, and what they may use."""
