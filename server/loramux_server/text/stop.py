"""Stop strings: find them across the borders of pieces, and never let any part of one out.

A stop ends the text where it is first complete: of all stop strings the one that ends earliest wins, and of those
that end at the same place the longest. So the result does not depend on how the text was cut into pieces.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..core.errors import FieldViolation, invalid

MAX_STOPS = 16
MAX_STOP_CHARS = 512


@dataclass(frozen=True, slots=True)
class StopResult:
    """``text`` may go out; ``stop`` is the stop string that ended it, if one did."""

    text: str
    stop: str | None = None


class StopMatcher:
    """Filters one stream of text. After a stop was found every further call gives nothing."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(dict.fromkeys(stops))
        self._held = ""
        self._found: str | None = None

    def push(self, text: str) -> StopResult:
        """Take the next piece; what may yet turn out to be the start of a stop string is held back."""
        if self._found is not None:
            return StopResult("", self._found)
        if not self._stops:
            return StopResult(text)
        buffer = self._held + text
        matches = [(at + len(stop), at, stop) for stop in self._stops if (at := buffer.find(stop)) >= 0]
        if matches:
            _, at, self._found = min(matches)
            self._held = ""
            return StopResult(buffer[:at], self._found)
        keep = self._undecided(buffer)
        self._held = buffer[len(buffer) - keep :]
        return StopResult(buffer[: len(buffer) - keep])

    def finish(self) -> str:
        """The text ended by itself: what was held back."""
        held, self._held = self._held, ""
        return held

    def _undecided(self, buffer: str) -> int:
        """Length of the longest end of ``buffer`` that begins some stop string."""
        longest = max((len(stop) - 1 for stop in self._stops), default=0)
        for size in range(min(longest, len(buffer)), 0, -1):
            end = buffer[len(buffer) - size :]
            if any(stop.startswith(end) for stop in self._stops):
                return size
        return 0


def check_stops(stops: Sequence[str], field: str = "stop") -> None:
    """Raise INVALID_ARGUMENT unless these are at most 16 strings of 1 to 512 characters."""
    problems = []
    if len(stops) > MAX_STOPS:
        problems.append(FieldViolation(field, f"{len(stops)} stop strings; at most {MAX_STOPS} are allowed"))
    for index, stop in enumerate(stops[:MAX_STOPS]):
        if not stop:
            problems.append(FieldViolation(f"{field}[{index}]", "is empty; leave it out"))
        elif len(stop) > MAX_STOP_CHARS:
            problems.append(
                FieldViolation(f"{field}[{index}]", f"has {len(stop)} characters; at most {MAX_STOP_CHARS} are allowed")
            )
    if problems:
        raise invalid(problems)
