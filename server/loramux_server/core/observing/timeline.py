"""What this process did when, for profiles: ranges of time on its threads, bounded in number.

A profile is of a whole process, so there is one timeline in it. While nobody records, a range costs next to nothing.
"""

from __future__ import annotations

import threading
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

NOTHING: AbstractContextManager[object] = nullcontext()


@dataclass(frozen=True, slots=True)
class Event:
    """A range of time on a track; a moment of counters where ``duration`` is None. Times in nanoseconds since 1970."""

    name: str
    track: str
    """Name of the thread, or of the device's stream."""
    start: int
    duration: int | None = None
    args: dict[str, Any] = field(default_factory=dict)


class Timeline:
    """Ranges may come from any thread; one of them records."""

    def __init__(self) -> None:
        self.recording = False
        self.dropped = 0
        """Events beyond those that were asked for."""
        self._events: list[Event] = []
        self._most = 0

    def record(self, most: int) -> None:
        """Begin anew, and keep at most so many events."""
        self._events, self._most, self.dropped = [], most, 0
        self.recording = True

    def stop(self) -> list[Event]:
        """What was recorded; ranges that have not ended are not in it."""
        self.recording = False
        events, self._events = self._events, []
        return events

    def range(self, name: str, **args: Any) -> AbstractContextManager[object]:
        """A range of time from entering to leaving, on the track of this thread."""
        return _Range(self, name, args) if self.recording else NOTHING

    def count(self, name: str, **values: float) -> None:
        """Note what counters say now."""
        if self.recording:
            self._add(Event(name, "", time.time_ns(), args=values))

    def ended(self, name: str, start: int, **args: Any) -> None:
        """Note a range that began at ``start``, in nanoseconds since 1970, and ends now."""
        if self.recording:
            self._add(Event(name, threading.current_thread().name, start, time.time_ns() - start, args))

    def _add(self, event: Event) -> None:
        if len(self._events) < self._most:
            self._events.append(event)
        else:
            self.dropped += 1


class _Range:
    def __init__(self, timeline: Timeline, name: str, args: dict[str, Any]) -> None:
        self._timeline, self._name, self._args = timeline, name, args
        self._start = time.time_ns()

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._timeline.ended(self._name, self._start, **self._args)


TIMELINE = Timeline()
"""Of this process."""
