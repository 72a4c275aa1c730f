"""What a turn of the loop has to say, sent in one piece."""

from __future__ import annotations

from collections.abc import Callable

from ..core.errors import Error
from ..core.observing.timeline import TIMELINE
from .transport.protocol import Failure, Output


class Outbox:
    """Gathers outputs until :meth:`flush`. Belongs to the loop's thread."""

    def __init__(self, send: Callable[[list[Output]], object]) -> None:
        self._send = send
        self._waiting: list[Output] = []

    def __len__(self) -> int:
        """Outputs that are not sent yet."""
        return len(self._waiting)

    def emit(self, output: Output) -> None:
        """Have an output sent."""
        self._waiting.append(output)

    def fail(self, id: str, error: Error) -> None:
        """End whatever has this id with an error."""
        self.emit(Output(id, failure=Failure.of(error), done=True))

    def flush(self) -> None:
        """Send what waits."""
        if self._waiting:
            with TIMELINE.range("send outputs", outputs=len(self._waiting)):
                self._send(self._waiting)
            self._waiting = []
