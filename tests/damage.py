"""What disks do to files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path


def flip_bit(path: Path) -> None:
    """One bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    """The second half is gone."""
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def lose(path: Path) -> None:
    path.unlink()


HARMS: dict[str, Callable[[Path], None]] = {"flipped": flip_bit, "cut": cut, "lost": lose}
