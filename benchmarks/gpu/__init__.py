"""What a GPU is checked and measured with, in one command: see :mod:`.check`."""
