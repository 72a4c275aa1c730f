"""Stop strings: find them across the borders of pieces, and never let any part of one out.

A stop ends the text where it is first complete: of all stop strings the one that ends earliest wins, and of those
that end at the same place the longest. So the result does not depend on how the text was cut into pieces.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class StopResult:
    """``text`` may go out; ``stop`` is the stop string that ended it, if one did."""

    text: str
    stop: str | None = None


class StopMatcher:
    """Filters one stream of text. After a stop was found every further call gives nothing.

    The stream may have hidden pieces: special tokens, which never go out. Stop strings are looked for in the text
    as it goes out, and in the text with the hidden pieces written out, where each of these counts whole or not at all.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(dict.fromkeys(stops))
        self._shown = _Reading(self._stops)
        self._full: _Reading | None = None
        """The text with its hidden pieces, once there is one."""
        self._held = ""
        self._found: str | None = None

    def push(self, text: str, *, hidden: bool = False, counts: bool = True) -> StopResult:
        """Take the next piece; what may yet turn out to be the start of a stop string is held back.

        A stop string that is complete with a piece that does not count is part of the text.
        """
        if self._found is not None:
            return StopResult("", self._found)
        if not self._stops:
            return StopResult("" if hidden else text)
        if hidden and self._full is None:
            self._full = self._shown.copy()
        readings = [*([] if hidden else [self._shown]), *([] if self._full is None else [self._full])]
        found = [match for reading in readings if (match := reading.push(text, hidden, counts)) is not None]
        self._held += "" if hidden else text
        if found:
            match = min(found)
            self._found = match.stop
            out, self._held = self._held[: len(self._held) - match.cut], ""
            return StopResult(out, self._found)
        keep = max(self._shown.undecided, 0 if self._full is None else self._full.undecided)
        out, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return StopResult(out)

    def finish(self) -> str:
        """The text ended by itself: what was held back."""
        held, self._held = self._held, ""
        return held


class _Match(NamedTuple):
    """A stop string in a reading; the one to take is the least. ``cut``: characters to take back that are shown."""

    end: int
    """Where it ends, counted from the end of the reading: negative."""
    minus_length: int
    cut: int
    stop: str


class _Reading:
    """The end of a text in which some stop string may have begun, with the places of the hidden pieces in it."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._longest = max(map(len, stops), default=0)
        self._text = ""
        self._hidden: list[tuple[int, int]] = []
        self.undecided = 0
        """Shown characters at the end that may belong to a stop string."""

    def copy(self) -> _Reading:
        other = _Reading(self._stops)
        other._text, other._hidden, other.undecided = self._text, list(self._hidden), self.undecided
        return other

    def push(self, text: str, hidden: bool, counts: bool) -> _Match | None:
        """Take the next piece; the stop string that it completes, if it does and may."""
        before = len(self._text)
        self._text += text
        if hidden:
            self._hidden.append((before, len(self._text)))
        if counts and (matches := [match for stop in self._stops if (match := self._find(stop, before)) is not None]):
            return min(matches)
        sizes = range(min(self._longest - 1, len(self._text)), 0, -1)
        start = next((at for at in (len(self._text) - size for size in sizes) if self._begins(at)), len(self._text))
        self._text = self._text[start:]
        self._hidden = [(a - start, b - start) for a, b in self._hidden if a >= start]
        self.undecided = self._shown(0)
        return None

    def _find(self, stop: str, before: int) -> _Match | None:
        """The first ``stop`` that ends after the first ``before`` characters."""
        at = self._text.find(stop, max(0, before - len(stop) + 1))
        while at >= 0 and not self._whole(at, at + len(stop)):
            at = self._text.find(stop, at + 1)
        if at < 0:
            return None
        return _Match(at + len(stop) - len(self._text), -len(stop), self._shown(at), stop)

    def _begins(self, at: int) -> bool:
        """Whether the text from ``at`` on is the start of a stop string."""
        end = self._text[at:]
        return any(stop.startswith(end) for stop in self._stops) and self._whole(at, len(self._text))

    def _whole(self, start: int, end: int) -> bool:
        """Whether no hidden piece lies partly in these bounds."""
        return all((start <= a and b <= end) or b <= start or end <= a for a, b in self._hidden)

    def _shown(self, at: int) -> int:
        """Characters from ``at`` on that are not hidden."""
        return len(self._text) - at - sum(b - a for a, b in self._hidden if a >= at)
