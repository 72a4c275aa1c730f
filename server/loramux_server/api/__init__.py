"""``loramux.v1`` on messages, whatever carries them: its methods, conversion, checks and errors."""
