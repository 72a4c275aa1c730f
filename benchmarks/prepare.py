"""What needs torch before measuring begins: ``python -m benchmarks.prepare base NAME FOLDER | rates DTYPE THREADS``.

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

        answer = measure_rates(arguments[0], int(arguments[1]))
    else:
        sys.exit(f"unknown: {what}")
    os.write(out, msgspec.json.encode(answer) + b"\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
