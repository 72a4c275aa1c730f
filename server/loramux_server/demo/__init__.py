"""``loramux demo``: the main job of the server, watched from outside through the public client."""

from .main import main

__all__ = ["main"]
