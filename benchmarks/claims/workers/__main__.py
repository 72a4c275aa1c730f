"""Runs one measurement: the module of that name."""

from __future__ import annotations

import os
import sys
from importlib import import_module

import msgspec

NAMES = ("base", "quality", "memory", "perplexity", "logprobs")


def main(name: str) -> None:
    if name not in NAMES:
        sys.exit(f"unknown: {name}; one of {', '.join(NAMES)}")
    out = os.dup(1)
    os.dup2(2, 1)
    settings = msgspec.json.decode(sys.stdin.buffer.read())
    for answer in import_module(f"{__package__}.{name}").run(settings):
        os.write(out, msgspec.json.encode(answer) + b"\n")


if __name__ == "__main__":
    main(sys.argv[1])
