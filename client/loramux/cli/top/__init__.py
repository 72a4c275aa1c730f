"""``loramux top``: what a server does now, as a screen, a frame of text or JSON."""

from .command import register

__all__ = ["register"]
