"""The whole terminal as a screen that follows a server until q is pressed."""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any

from ...client import Client
from .feed import Feed
from .frame import View, lines
from .marks import Marks

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

QUIT = b"qQ\x03\x1b"
HINT = "q quits"


class Picture:
    """A view as rich draws it: as large as the terminal is at that moment."""

    def __init__(self, view: View) -> None:
        self._view = view

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.segment import Segment

        found = lines(self._view, options.max_width, options.size.height)
        for number, line in enumerate(found):
            yield line
            if number + 1 < len(found):
                yield Segment.line()


def follow(client: Client, console: Console, marks: Marks, interval: float, window: int) -> None:
    """Show the server until a key, a signal or an error that does not pass ends it. Raises that error."""
    from rich.live import Live

    with ExitStack() as stack:
        bell = stack.enter_context(_bell())
        feed = stack.enter_context(Feed(client, interval, window, bell.ring))
        keyboard = stack.enter_context(_keyboard())
        live = stack.enter_context(Live(console=console, screen=True, auto_refresh=False, redirect_stderr=False))
        while feed.fatal is None and not bell.ended:
            view = View(
                client.address,
                marks,
                time.strftime("%H:%M:%S"),
                feed.info,
                feed.stats,
                tuple(feed.rates),
                feed.trouble or ("" if feed.stats else "waiting for the first answer"),
                HINT,
            )
            live.update(Picture(view), refresh=True)
            if _pressed(bell, keyboard):
                return
    if feed.fatal is not None:
        raise feed.fatal


class _Bell:
    """Wakes the screen from other threads and from signals. ``ended``: a signal asks the process to end."""

    def __init__(self, write: int, read: int) -> None:
        self.ended = False
        self._write, self.read = write, read

    def ring(self) -> None:
        """Something is new."""
        with suppress(BlockingIOError):  # it is ringing already
            os.write(self._write, b"\0")

    def end(self, *_: Any) -> None:
        self.ended = True


@contextmanager
def _bell() -> Iterator[_Bell]:
    """A bell that rings when the terminal changes its size, and when the process is asked to end."""
    read, write = os.pipe()
    for end in (read, write):
        os.set_blocking(end, False)
    bell = _Bell(write, read)
    woken = signal.set_wakeup_fd(write)
    before = {name: signal.signal(name, bell.end) for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    before[signal.SIGWINCH] = signal.signal(signal.SIGWINCH, lambda *_: None)
    try:
        yield bell
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
        signal.set_wakeup_fd(woken)
        os.close(read)
        os.close(write)


@contextmanager
def _keyboard() -> Iterator[int | None]:
    """Keys as they are pressed, from the terminal that standard input is; None: it is none."""
    if not sys.stdin.isatty():
        yield None
        return
    import termios
    import tty

    keyboard = sys.stdin.fileno()
    before = termios.tcgetattr(keyboard)
    tty.setcbreak(keyboard)
    try:
        yield keyboard
    finally:
        termios.tcsetattr(keyboard, termios.TCSADRAIN, before)


def _pressed(bell: _Bell, keyboard: int | None) -> bool:
    """Wait for something new; whether it is the key that quits, or the terminal is gone."""
    ready, _, _ = select.select([bell.read, *([keyboard] if keyboard is not None else [])], [], [])
    if bell.read in ready:
        os.read(bell.read, 4096)
    if keyboard is None or keyboard not in ready:
        return False
    keys = os.read(keyboard, 64)
    return not keys or any(key in QUIT for key in keys)
