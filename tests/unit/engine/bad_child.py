"""Stands in for the engine's process: answers stats, and says what nobody can read when its settings ask for that.

``model`` of the settings: ``once`` for a single bad frame, ``ready`` for one in every life as soon as it is ready,
``lost`` for three lives that end because they lost the frames of the commands.
"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

from loramux_server.core.backend import EngineInfo, EngineStats
from loramux_server.engine.transport.process import LOST_FRAMING
from loramux_server.engine.transport.protocol import Output, StatsCommand
from loramux_server.engine.transport.wire import HEADER, Ready, Start, Stop, encode, read_frames

GARBAGE = {
    "no message": HEADER.pack(7) + b"garbage",
    "unknown kind": HEADER.pack(3) + b"\x92\xa0\xc0",
    "too long": HEADER.pack(0xFFFFFFFF),
}


def main(fd: int) -> None:
    connection = socket.socket(fileno=fd)
    messages = read_frames(connection)
    start = next(messages)
    assert isinstance(start, Start)
    with (Path(start.settings.state_dir) / "secrets").open("ab") as file:
        file.write(start.secret)
    how, _, what = str(start.settings.model).partition(":")
    mark = Path(start.settings.state_dir) / "said"
    info = EngineInfo("base", "f", "a", 9, 9, (), "cpu", "float32", 1, {}, "")
    connection.sendall(encode(Ready(info)))
    if how == "ready":
        connection.sendall(GARBAGE[what])
    for message in messages:
        if isinstance(message, Stop):
            return
        assert isinstance(message, StatsCommand)
        if how == "lost" and mark_lives(mark) < 3:
            os._exit(LOST_FRAMING)
        if how == "once" and not mark.exists():
            mark.touch()
            connection.sendall(GARBAGE[what])
        else:
            connection.sendall(encode([Output(message.id, EngineStats(running=5), done=True)]))


def mark_lives(mark: Path) -> int:
    """How many lives there were; this one is written down."""
    lives = len(mark.read_text()) if mark.exists() else 0
    mark.write_text("x" * (lives + 1))
    return lives


if __name__ == "__main__":
    main(int(sys.argv[1]))
