"""Where the ready-made adapters and their data lie."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent.parent
PLACES = (_PACKAGE.parent.parent / "adapters", _PACKAGE / "_adapters")
"""The folder of a checkout, and what the wheel brings along."""


def shipped(name: str) -> Path | None:
    """A file or folder of the ready-made adapters, such as ``data/messages/replay.jsonl``; None if it is not here."""
    return next((place / name for place in PLACES if (place / name).exists()), None)
