"""The engine's own process: ``python -m loramux_server.engine_process FD`` over an inherited socket.

Started by ``engine.process_backend``; not for people.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys
import threading

import msgspec

from .core.errors import Error
from .engine import spinning
from .engine.environment import may_spin
from .engine.protocol import Failure, Output
from .engine.wire import Broken, Progress, Ready, Start, Stop, encode, read_frames


def main(fd: int) -> int:
    """Build the engine that the first message describes and run it until told to stop or the front is gone."""
    # The front decides when to stop; a Ctrl-C in the terminal is its to handle.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    connection = socket.socket(fileno=fd)
    messages = read_frames(connection)
    start = next(messages, None)
    if not isinstance(start, Start):
        return 2
    import torch  # with it comes OpenMP

    from .engine_factory import build

    if may_spin():
        spinning.control(start.settings.threads or torch.get_num_threads())

    def send(outputs: list[Output]) -> None:
        connection.sendall(encode(outputs))

    def progress(step: str, fraction: float | None) -> None:
        connection.sendall(encode(Progress(step, fraction)))

    try:
        engine, info = build(start.settings, start.secret, send, progress)
    except Error as error:
        connection.sendall(encode(Broken(Failure.of(error))))
        return 1
    # What stands now stays to the end: collections that walk through it again and again would hold up steps.
    gc.collect()
    gc.freeze()
    connection.sendall(encode(Ready(info)))

    def read() -> None:
        try:
            for message in messages:
                if isinstance(message, Stop):
                    engine.stop()
                    return
                engine.submit(message)
        except msgspec.MsgspecError as error:
            # What came after it cannot be told apart: the front starts another process.
            print(f"loramux engine: a message that cannot be read: {error}", file=sys.stderr, flush=True)
            os._exit(4)
        except OSError:
            pass  # a reset: the front died and had not read all that it was sent
        # The front died: nobody waits for anything any more, and a step may still take long.
        os._exit(3)

    threading.Thread(target=read, name="commands", daemon=True).start()
    engine.run()
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
