"""From the ``loramux`` command to the server, in the same process."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec

NEEDED = ("loramux_server", "uvloop")
"""What a server cannot do without, from two packages that may be missing."""


def installed() -> bool:
    """Whether there is a server here to become; looks without importing anything."""
    try:
        return all(find_spec(name) is not None for name in NEEDED)
    except ValueError:  # a module that says nothing about where it is from
        return False


def exec_server(arguments: Sequence[str]) -> None:
    """Become a server with these flags.

    In place of this process, which may have gRPC loaded: the server sets what gRPC reads when it is loaded.
    """
    os.execv(sys.executable, [sys.executable, "-m", "loramux_server", *arguments])
