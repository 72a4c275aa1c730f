"""Chrome traces: the JSON that Perfetto and ``chrome://tracing`` read, compressed with gzip."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from ...core.observing.timeline import Event

AT_ONCE = 256
"""Events that are encoded without letting other threads in."""


def write_trace(
    path: Path, process: str, start: int, events: Iterable[Event], about: dict[str, Any], go_on: Callable[[], bool]
) -> int:
    """Write a trace and give the number of its events; times are counted from ``start``.

    ``about`` is kept beside the events. Leaves early once ``go_on`` says no. Raises OSError.
    """
    encode, written = msgspec.json.Encoder().encode, 0
    tracks: dict[str, int] = {}
    with gzip.open(path, "wb", compresslevel=5) as file:
        file.write(b'{"displayTimeUnit":"ms","otherData":' + encode(about) + b',"traceEvents":[')
        file.write(encode({"ph": "M", "pid": 1, "tid": 0, "name": "process_name", "args": {"name": process}}))
        left = iter(events)
        while (batch := [*islice(left, AT_ONCE)]) and go_on():
            found = [*_tracks(batch, tracks), *(_entry(event, start, tracks) for event in batch)]
            file.write(b"," + b",".join(map(encode, found)))
            written += len(batch)
        file.write(b"]}")
    return written


def _tracks(events: Iterable[Event], known: dict[str, int]) -> Iterator[dict[str, Any]]:
    """Number the tracks that are new, and name them."""
    for event in events:
        if event.track and event.track not in known:
            known[event.track] = number = len(known) + 1
            yield {"ph": "M", "pid": 1, "tid": number, "name": "thread_name", "args": {"name": event.track}}


def _entry(event: Event, start: int, tracks: dict[str, int]) -> dict[str, Any]:
    """An event with its times in microseconds."""
    entry = {"name": event.name, "pid": 1, "ts": (event.start - start) / 1000, "args": event.args}
    if event.duration is None:
        return entry | {"ph": "C"}
    return entry | {"ph": "X", "tid": tracks[event.track], "dur": event.duration / 1000}
