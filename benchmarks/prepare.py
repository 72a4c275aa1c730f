"""What needs torch beside the measuring: ``python -m benchmarks.prepare WHAT ARGUMENTS``.

    base NAME FOLDER | rates DTYPE THREADS DEVICE | registry BASE FOLDER REGISTERED WHOLE | loads FOLDER DTYPE COUNT

Writes the answer as one line of JSON; whatever libraries print goes to standard error.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import msgspec


def main(what: str, *arguments: str) -> None:
    out = os.dup(1)
    os.dup2(2, 1)
    answer: object
    if what == "base":
        from .material import prepare

        answer = prepare(arguments[0], Path(arguments[1]))
    elif what == "rates":
        from .machine import measure_rates

        answer = measure_rates(arguments[0], int(arguments[1]), arguments[2])
    elif what == "registry":
        from .registry import make

        answer = make(Path(arguments[0]), Path(arguments[1]), int(arguments[2]), int(arguments[3]))
    elif what == "loads":
        from .bank_loads import measure

        answer = measure(Path(arguments[0]), arguments[1], int(arguments[2]))
    else:
        sys.exit(f"unknown: {what}")
    os.write(out, msgspec.json.encode(answer) + b"\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
