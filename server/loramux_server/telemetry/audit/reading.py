"""Reading the audit log, beside those who write to it."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

from .entry import Entry
from .log import files_of

POLL_SECONDS = 0.25
"""Between two looks for new lines. The file may be on a file system that tells of no changes."""


def read(
    path: Path, *, follow: bool = False, wait: Callable[[], None] = lambda: time.sleep(POLL_SECONDS)
) -> Iterator[Entry | None]:
    """Entries of an audit log and its older files, oldest first; None for a line that a crash has cut.

    With ``follow`` it goes on with what is written from now on, and calls ``wait`` when there is nothing new.
    Raises ``FileNotFoundError`` where there is no log.
    """
    with ExitStack() as stack:
        files = [stack.enter_context(file) for file in _open_all(path)]
        current = files.pop()
        for file in files:
            yield from _entries(file)
        yield from _entries(current, to_the_end=not follow)
        while follow:
            newer = _newer_than(current, path)
            yield from _entries(current, to_the_end=bool(newer))  # it gets no more lines once there is a newer one
            for file in newer:
                current = stack.enter_context(file)
                yield from _entries(current, to_the_end=file is not newer[-1])
            if not newer:
                wait()


def _open_all(path: Path) -> list[BinaryIO]:
    """The files that exist, oldest first, all opened between two rotations."""
    with path.open("rb") as guard:
        fcntl.flock(guard, fcntl.LOCK_SH)
        return [file.open("rb") for file in files_of(path)]


def _newer_than(file: BinaryIO, path: Path) -> list[BinaryIO]:
    """Files that were begun after this one, oldest first; all that there are if it was removed meanwhile."""
    try:
        if os.path.samestat(os.fstat(file.fileno()), path.stat()):
            return []
        files = _open_all(path)
    except FileNotFoundError:  # between two steps of a rotation
        return []
    own = os.fstat(file.fileno())
    places = [i for i, other in enumerate(files) if os.path.samestat(own, os.fstat(other.fileno()))]
    older, newer = files[: places[0] + 1] if places else [], files[places[0] + 1 :] if places else files
    for other in older:
        other.close()
    return newer


def _entries(file: BinaryIO, *, to_the_end: bool = True) -> Iterator[Entry | None]:
    """What is left in a file. A last line without its end is left for later, unless no more will come."""
    while line := file.readline():
        if not line.endswith(b"\n") and not to_the_end:
            file.seek(-len(line), os.SEEK_CUR)
            return
        if line.strip():
            yield Entry.read(line)
