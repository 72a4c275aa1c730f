"""Which signals stop a server, and which of its processes they are for."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""What people, terminals and process managers send to whatever should end."""


def to_stop() -> tuple[signal.Signals, ...]:
    """The signals that stop this process: not SIGHUP where it is ignored, which is what ``nohup`` asks for."""
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return tuple(number for number in STOPPING if not (number is signal.SIGHUP and ignored))


class Stopped(BaseException):
    """A signal that stops; ``number`` says which."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def stopping_raises() -> Iterator[None]:
    """While inside, the main thread is stopped by ``Stopped``, so that whatever it has begun is ended on the way out.

    The first signal counts. Later ones must not interrupt that: terminals and process managers send several.
    """
    numbers = to_stop()

    def stop(number: int, frame: FrameType | None) -> None:
        for each in numbers:
            signal.signal(each, lambda *_: None)
        raise Stopped(number)

    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def leave_to_the_front() -> None:
    """Ignore them, in a process that the front stops: a terminal or a process manager may send them to all at once."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)


def take_signals_back() -> None:
    """Install the handlers of Python anew, over those that a library in C has put in their place. Main thread only."""
    if threading.current_thread() is not threading.main_thread():
        return
    for number in STOPPING:
        if callable(handler := signal.getsignal(number)):
            signal.signal(number, handler)
