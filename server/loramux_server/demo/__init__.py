"""``loramux demo``: what the server is for, watched from outside through the public client."""

from .main import main

__all__ = ["main"]
