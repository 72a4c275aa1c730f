"""The engine's own process: ``python -m loramux_server.engine_process FD`` over an inherited socket.

Started by ``engine.process_backend``; not for people.
"""

from __future__ import annotations

import gc
import os
import socket
import sys
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, NoReturn

import msgspec

from .core.errors import Error
from .engine.transport.process import LOST_FRAMING
from .engine.transport.protocol import Command, Failure
from .engine.transport.wire import Broken, Progress, Ready, Start, Stop, Unreadable, encode, read_frames
from .host.signals import leave_to_the_front
from .telemetry.logs import configure_child, get_logger
from .telemetry.stderr import flush, hush_exit

if TYPE_CHECKING:
    from .engine.loop import EngineLoop

logger = get_logger(__name__)

LAST_LINES = 0.5
"""Seconds that the last lines get to be written."""


def main(fd: int) -> int:
    """Build the engine that the first message describes and run it until told to stop or the front is gone."""
    hush_exit()
    leave_to_the_front()
    configure_child()
    connection = socket.socket(fileno=fd)
    messages = read_frames(connection)
    start = next(messages, None)
    if not isinstance(start, Start):
        return 2
    running: Future[EngineLoop] = Future()

    def read() -> None:
        try:
            for message in messages:
                match message:
                    case Stop() if running.done():
                        running.result().stop()
                        return
                    case Stop():
                        break  # there is nothing to wait for yet
                    case _ if isinstance(message, Command | Unreadable):
                        running.result().submit(message)
                    case _:
                        logger.error("a message that is no command is dropped", kind=type(message).__name__)
        except msgspec.MsgspecError as error:
            # What came after it cannot be told apart: the front starts another process.
            logger.error("the commands cannot be read any more", error=str(error))
            flush(LAST_LINES)
            os._exit(LOST_FRAMING)
        except OSError:
            pass  # a reset: the front died and had not read all that it was sent
        _alone()

    # Before anything slow: a front that dies or stops while the base is loaded takes this process along.
    threading.Thread(target=read, name="commands", daemon=True).start()

    def say(message: object) -> None:
        try:
            connection.sendall(encode(message))
        except OSError:
            _alone()

    gc.disable()  # imports make next to no garbage, and looking for it takes a sixth of their time
    from .engine_factory import build

    gc.enable()
    try:
        engine, info = build(start.settings, start.secret, say, lambda step, fraction: say(Progress(step, fraction)))
    except Error as error:
        say(Broken(Failure.of(error)))
        return 1
    # What stands now stays to the end: collections that walk through it again and again would hold up steps.
    gc.collect()
    gc.freeze()
    running.set_result(engine)
    say(Ready(info))
    engine.run()
    return 0


def _alone() -> NoReturn:
    """The front died: nobody waits for anything any more, and a step, or a load, may still take long."""
    os._exit(3)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
