"""The calls that a door answers, whatever its protocol: each has an id, is counted, and ends with a reason."""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import structlog

from ...core.call import Call, enter
from ...core.errors import Code, Error, new_error_id, shutting_down
from ...telemetry.logs import get_logger

logger = get_logger(__name__)

R = TypeVar("R")

_REQUEST_ID = re.compile(r"[!-~]{1,128}")


class CallSink(Protocol):
    """Where calls are counted."""

    def call_finished(self, method: str, code: str, seconds: float) -> None: ...


@dataclass(slots=True)
class GenerationLimit:
    """How many calls may wait for the engine at once, over all doors; more are refused unread."""

    most: int
    running: int = 0

    @property
    def reached(self) -> bool:
        return self.running >= self.most


class Calls:
    """The calls of one door. ``sink`` counts them, ``limit`` is shared with the other doors."""

    def __init__(self, sink: CallSink, limit: GenerationLimit) -> None:
        self.limit = limit
        self._sink = sink
        self._tasks: dict[asyncio.Task[Any], str] = {}
        self._failing: set[asyncio.Task[Any]] = set()
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def running(self) -> int:
        """Calls that are being answered."""
        return len(self._tasks)

    async def wait_idle(self) -> None:
        """Return when no call is being answered."""
        await self._idle.wait()

    def fail_running(self, methods: Iterable[str] | None = None) -> None:
        """End calls (all, or those of ``methods``) with UNAVAILABLE because the server stops."""
        chosen = None if methods is None else frozenset(methods)
        for task, method in list(self._tasks.items()):
            if chosen is None or method in chosen:
                self._failing.add(task)
                task.cancel()

    async def answer(
        self,
        call: Call,
        work: Callable[[], Awaitable[R]],
        *,
        generates: bool,
        refused: bool = False,
        gone: Callable[[], bool] = lambda: False,
    ) -> R:
        """What ``work`` gives, counted before the caller can know how the call ended. The task becomes the call's.

        ``generates``: the call waits for the engine; it is refused beyond the limit, or where the door found the
        limit reached before it read the message (``refused``). ``gone`` tells whether the caller has left. Raises
        ``Error`` alone, which is for the caller, beside CancelledError; a defect is INTERNAL with an id that the log
        has beside the traceback.
        """
        enter(call)
        structlog.contextvars.bind_contextvars(request_id=call.request_id)
        task = asyncio.current_task()
        assert task is not None
        refused = refused or (generates and self.limit.reached)
        admitted = generates and not refused
        self._tasks[task] = call.method
        self.limit.running += admitted
        self._idle.clear()
        try:
            return await self._counted(call, work, task, refused, gone)
        finally:
            del self._tasks[task]
            self.limit.running -= admitted
            self._failing.discard(task)
            if not self._tasks:
                self._idle.set()

    async def _counted(
        self,
        call: Call,
        work: Callable[[], Awaitable[R]],
        task: asyncio.Task[Any],
        refused: bool,
        gone: Callable[[], bool],
    ) -> R:
        started = time.monotonic()
        code = "OK"
        try:
            if refused:
                raise _queue_full(self.limit.most)
            return await work()
        except asyncio.CancelledError:
            if task in self._failing:
                code = Code.UNAVAILABLE.name
                task.uncancel()
                raise shutting_down() from None
            code = _code_of_cancelled(call)
            raise  # never swallowed: grpc.aio leaks a little for every handler that does
        except Error as error:
            code = error.code.name
            raise
        except Exception:
            if gone():
                code = _code_of_cancelled(call)
                raise
            code = Code.INTERNAL.name
            error_id = new_error_id()
            logger.exception("call failed", method=call.method, error_id=error_id)
            raise Error(Code.INTERNAL, f"internal error; the server's log has it as {error_id}") from None
        finally:
            seconds = time.monotonic() - started
            self._sink.call_finished(call.method, code, seconds)
            logger.debug("call", method=call.method, code=code, seconds=round(seconds, 4))


def request_id(*given: str) -> str:
    """The first id that a caller gave, or a new one where it is none that can be used."""
    found = next(filter(None, given), "")
    return found if is_request_id(found) else uuid.uuid4().hex


def is_request_id(text: str) -> bool:
    """Whether ``text`` can be the id of a request: at most 128 printable ASCII characters without spaces."""
    return _REQUEST_ID.fullmatch(text) is not None


def _code_of_cancelled(call: Call) -> str:
    late = call.deadline is not None and time.monotonic() >= call.deadline
    return (Code.DEADLINE_EXCEEDED if late else Code.CANCELLED).name


def _queue_full(most: int) -> Error:
    message = f"the server has {most} generations to do and takes no more now (--max-running, --max-queue); try again"
    return Error(Code.RESOURCE_EXHAUSTED, message, reason="QUEUE_FULL", retry_after=1.0)
