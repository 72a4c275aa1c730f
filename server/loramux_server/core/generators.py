"""Work that pauses: written as a generator, so that its caller decides what happens in between."""

from __future__ import annotations

from collections.abc import Generator
from typing import TypeVar

T = TypeVar("T")


def run_to_end(work: Generator[object, None, T]) -> T:
    """What the work returns, done without a pause."""
    while True:
        try:
            next(work)
        except StopIteration as done:
            result: T = done.value
            return result
