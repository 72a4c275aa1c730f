"""The ``loramux`` command."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from .handover import exec_server, installed

__all__ = ["main"]

# Read when gRPC is loaded. What it notes about handshakes is in the error too, in words for people.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; gives the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if arguments[:1] == ["serve"] and installed():
            exec_server(arguments[1:])  # at once: what the other commands import takes a second
            return 0
        from .app import main as run
    except KeyboardInterrupt:
        return 130
    return run(arguments)
