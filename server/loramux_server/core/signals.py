"""Which signals stop a server, and which of its processes they are for."""

from __future__ import annotations

import signal

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""What people, terminals and process managers send to whatever should end."""


def to_stop() -> tuple[signal.Signals, ...]:
    """The signals that stop this process: not SIGHUP where it is ignored, which is what ``nohup`` asks for."""
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return tuple(number for number in STOPPING if not (number is signal.SIGHUP and ignored))


def leave_to_the_front() -> None:
    """Ignore them, in a process that the front stops: a terminal or a process manager may send them to all at once."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)
