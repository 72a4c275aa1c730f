"""Keeps the processes that hold grammars (grammar_process.py): one a grammar, so many at most, none without need.

All of it runs on a thread with an event loop of its own, so that the engine's turn never waits for a pipe.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import subprocess
import sys
import threading
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from ...core.errors import Code
from ...core.observing.outage import Outage
from ...core.types import Grammar
from ..transport.wire import HEADER, frame_size
from .process import BAD_TOKENIZER
from .wire import Close, Compile, Compiled, Mask, Open, Request, Setup, Step, decode_reply, frame

log = logging.getLogger(__name__)

MODULE = "loramux_server.engine.grammar.process"
MAX_PROCESSES = 32
"""Grammars in memory at once. Those that nobody uses are kept for the next request and leave in order of last use."""
MAX_REFUSED = 256
"""Grammars that are remembered as bad, so that sending one again costs nothing."""
STOP_SECONDS = 5.0


@dataclass(eq=False, slots=True)
class _Process:
    """The process of one grammar and the answers that are written in it."""

    grammar: Grammar
    writer: asyncio.StreamWriter | None = None
    backlog: list[Request] = field(default_factory=list)
    users: set[int] = field(default_factory=set)
    forked: bool = False
    compiled: bool = False

    def send(self, message: Request) -> None:
        if self.writer is None:
            self.backlog.append(message)
        else:
            self.writer.write(frame(message))


class GrammarHost:
    """Masks for answers under keys. ``deliver(mask)`` is called from the host's thread, in order for each key.

    The public methods may be called from any one thread and never block, but for ``stop``.
    """

    def __init__(self, setup: Setup, deliver: Callable[[Mask], None]) -> None:
        self._setup, self._deliver = setup, deliver
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._parent: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._processes: OrderedDict[Grammar, _Process] = OrderedDict()  # least recently used first
        self._keys: dict[int, _Process] = {}
        self._outage = Outage()
        self._waiting: deque[tuple[int, Grammar]] = deque()
        self._refused: OrderedDict[Grammar, Mask] = OrderedDict()
        self._tasks: set[asyncio.Task[None]] = set()
        self.counts: Counter[str] = Counter(compiled=0, refused=0, lost=0, restarts=0)
        """Grammars compiled, refused, lost with their process; new starts of the process they are forked from."""

    @property
    def pid(self) -> int | None:
        """The process that the grammars' processes are forked from, once there is one."""
        return None if self._parent is None else self._parent.pid

    def open(self, key: int, grammar: Grammar) -> None:
        """Begin an answer. Its first mask comes when the grammar is compiled, which may take seconds."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=self._loop.run_forever, name="grammars", daemon=True)
            self._thread.start()
        self._loop.call_soon_threadsafe(self._open, key, grammar)

    def step(self, key: int, token: int) -> None:
        """A token was chosen; the mask for the next one comes."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._step, key, token)

    def close(self, key: int) -> None:
        """The answer is over."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._close, key)

    def stop(self) -> None:
        """End all processes and the thread."""
        if self._loop is None or self._thread is None:
            return
        self._loop.call_soon_threadsafe(self._end)
        self._thread.join()
        self._loop.close()
        self._loop = None

    # -- on the host's thread ---------------------------------------------------------------------------------

    def _open(self, key: int, grammar: Grammar) -> None:
        if (refusal := self._refused.get(grammar)) is not None:
            self._refused.move_to_end(grammar)
            self._fail(key, refusal)
            return
        process = self._processes.get(grammar)
        if process is None:
            if len(self._processes) >= MAX_PROCESSES and not self._evict():
                self._waiting.append((key, grammar))
                return
            try:
                process = self._start(grammar)
            except OSError as error:  # no memory or no descriptors left for another process
                if self._outage.failed():
                    log.error("no process for a grammar (%d so far): %s", self._outage.failures, error)
                self._fail(key, _NO_PROCESS)
                return
            self._outage.over()
        self._processes.move_to_end(grammar)
        process.users.add(key)
        self._keys[key] = process
        process.send(Open(key))

    def _step(self, key: int, token: int) -> None:
        if (process := self._keys.get(key)) is not None:
            process.send(Step(key, token))

    def _close(self, key: int) -> None:
        process = self._keys.pop(key, None)
        if process is None:
            self._waiting = deque(w for w in self._waiting if w[0] != key)
            return
        process.users.discard(key)
        process.send(Close(key))
        self._admit()

    def _admit(self) -> None:
        """Give the waiting their turn as far as there is room."""
        while self._waiting and (len(self._processes) < MAX_PROCESSES or self._evict()):
            self._open(*self._waiting.popleft())

    def _evict(self) -> bool:
        """Let the least recently used grammar go that nobody uses."""
        for process in self._processes.values():
            if not process.users and process.writer is not None:
                del self._processes[process.grammar]
                process.writer.close()
                return True
        return False

    def _start(self, grammar: Grammar) -> _Process:
        if self._parent is None or self._parent.poll() is not None:
            self._spawn()
        assert self._control is not None
        ours, theirs = socket.socketpair()
        try:
            socket.send_fds(self._control, [b"x"], [theirs.fileno()])
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        process = self._processes[grammar] = _Process(grammar)
        assert self._loop is not None
        task = self._loop.create_task(self._attend(process, ours))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return process

    def _spawn(self) -> None:
        """Start the process that grammars are forked from. It takes sockets as soon as it has read the tokenizer."""
        if self._control is not None:
            self._control.close()
            self.counts["restarts"] += 1
        self._control, theirs = socket.socketpair()
        with theirs:
            self._parent = subprocess.Popen(
                [sys.executable, "-m", MODULE, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # signals from a terminal are not for it
            )
        self._control.sendall(frame(self._setup))

    async def _attend(self, process: _Process, connection: socket.socket) -> None:
        """Hand on what a process says until it is gone, then answer for it."""
        reader, writer = await asyncio.open_unix_connection(sock=connection)
        for message in (Compile(process.grammar), *process.backlog):
            writer.write(frame(message))
        process.writer = writer
        refusal: Mask | None = None
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while refusal is None:
                header = await reader.readexactly(HEADER.size)
                match decode_reply(await reader.readexactly(frame_size(header))):
                    case Mask() as mask:
                        self._deliver(mask)
                    case Compiled(""):
                        process.compiled = True
                        self.counts["compiled"] += 1
                    case Compiled(error):
                        refusal = Mask(0, code=Code.INVALID_ARGUMENT, error=error)
                    case _:
                        process.forked = True
        writer.close()
        if refusal is None:
            refusal = await self._why(process)
        if process.users or not process.compiled:
            self.counts["lost" if process.compiled else "refused"] += 1
        if refusal.code is Code.INVALID_ARGUMENT:
            self._refused[process.grammar] = refusal
            if len(self._refused) > MAX_REFUSED:
                self._refused.popitem(last=False)
        if self._processes.get(process.grammar) is process:
            del self._processes[process.grammar]
        for key in process.users:
            del self._keys[key]
            self._fail(key, refusal)
        self._admit()

    async def _why(self, process: _Process) -> Mask:
        """What to tell those who used a process that ended without a word."""
        if process.compiled:
            return _TOO_COMPLEX
        if process.forked:
            return _UNCOMPILABLE
        assert self._parent is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            if await asyncio.to_thread(self._parent.wait, STOP_SECONDS) == BAD_TOKENIZER:
                return _BAD_TOKENIZER
        return _NO_PROCESS

    def _fail(self, key: int, error: Mask) -> None:
        self._deliver(Mask(key, code=error.code, error=error.error))

    def _end(self) -> None:
        """Close all sockets: that ends the processes, as the engine's death would."""
        assert self._loop is not None
        for task in self._tasks:
            task.cancel()
        for process in self._processes.values():
            if process.writer is not None:
                process.writer.close()
        if self._control is not None and self._parent is not None:
            self._control.close()
            try:
                self._parent.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._parent.kill()
                self._parent.wait()
        self._loop.call_soon(self._loop.stop)


_UNCOMPILABLE = Mask(
    0, code=Code.INVALID_ARGUMENT, error="takes more time or memory to compile than is allowed; simplify it"
)
_TOO_COMPLEX = Mask(
    0, code=Code.RESOURCE_EXHAUSTED, error="took more time or memory for this answer than is allowed; simplify it"
)
_BAD_TOKENIZER = Mask(
    0,
    code=Code.FAILED_PRECONDITION,
    error="cannot be used with this base's tokenizer; the server's log says why. Leave the field out",
)
_NO_PROCESS = Mask(0, code=Code.UNAVAILABLE, error="cannot be worked on right now; try again")
