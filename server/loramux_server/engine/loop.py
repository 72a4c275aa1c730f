"""The engine loop: one thread that owns the model. A turn takes commands, runs one serve step, then trains a little."""

from __future__ import annotations

import logging
import queue
import time
from collections.abc import Callable, Collection, Iterator

from ..core.backend import (
    EmbedCommand,
    EngineInfo,
    EngineStats,
    GenerateCommand,
    ProfileCommand,
    ProfileResult,
    ScoreCommand,
)
from ..core.background import Background
from ..core.errors import Code, Error
from ..core.jobs import TrainCommand
from ..core.settings import EngineSettings
from ..core.timeline import NOTHING, TIMELINE
from ..core.types import AdapterVersion, Stack, StackEntry
from ..cpu.heap import give_back
from ..model.out_of_memory import out_of_memory
from ..peft.folder import naming
from .checks import adapter_violations, profile_violations, refuse, train_violations
from .execution.embeddings import EmbeddingCollector
from .execution.failures import no_memory
from .execution.model_runner import ModelRunner
from .execution.scores import ScoreCollector
from .execution.token_selection import TokenSelector
from .gpu import Gpu
from .grammar.masks import GrammarMasks
from .inbox import AdapterRead, Inbox, MaskReady, Message, ProfileWritten, StopLoop
from .memory_pressure import MemoryPressure
from .profiling.profiler import Profiler
from .residency.manager import ResidencyManager
from .scheduling.new_sequence import make_sequence
from .scheduling.plan import StepPlan
from .scheduling.scheduler import Scheduler
from .scheduling.sequence import Sequence, State
from .stats import StatsCollector
from .training_share import TrainingShare
from .transport.protocol import (
    AbortCommand,
    Command,
    Failure,
    LoadCommand,
    Output,
    PinCommand,
    StatsCommand,
    UnloadCommand,
    command_id,
)
from .transport.wire import Unreadable

log = logging.getLogger(__name__)

LONGEST_SLEEP = 3600.0
"""Seconds after which an idle loop looks up again, however far away the next deadline is."""


class EngineLoop:
    """Turns commands into outputs. ``submit`` and ``stop`` may be called from any thread; ``run`` is the thread."""

    def __init__(
        self,
        settings: EngineSettings,
        inbox: Inbox,
        runner: ModelRunner,
        scheduler: Scheduler,
        residency: ResidencyManager,
        grammars: GrammarMasks,
        background: Background,
        info: EngineInfo,
        emit: Callable[[list[Output]], object],
        memory: Callable[[int], dict[str, int]],
        profiler: Profiler,
    ) -> None:
        self.runner, self.scheduler = runner, scheduler
        self._inbox, self._residency, self._grammars, self._profiler = inbox, residency, grammars, profiler
        share, slice_seconds = settings.training_share, settings.training_slice_ms / 1000
        self._training = TrainingShare(background, share, slice_seconds, done=self._job_done)
        self._info, self._send, self._memory, self._folders = info, emit, memory, settings.folders
        self.pressure = pressure = MemoryPressure(scheduler, self._training)
        self._stats = StatsCollector(Gpu(runner.base.device) if runner.base.device.type == "cuda" else None)
        self._scores = ScoreCollector(scheduler.get, self._finish, self._end, self._emit, pressure)
        self._embeddings = EmbeddingCollector(scheduler.get, self._finish, self._end, self._emit, pressure)
        self._selector = TokenSelector(grammars, info.eos_token_ids, self._finish, self._end, self._emit, pressure)
        self._outbox: list[Output] = []
        self._next_read: float | None = None
        self._stopping = False
        self._stalled = True  # the last turn found nothing to compute

    def submit(self, command: Command | Unreadable) -> None:
        """Hand in a command; its outputs come through ``emit``, a list a turn, from the loop's thread."""
        self._inbox.put(command)

    def stop(self) -> None:
        """End the loop after the turn in progress; what is still open fails with UNAVAILABLE."""
        self._inbox.put(StopLoop())

    def run(self) -> None:
        """Turn until stopped."""
        while not self._stopping:
            self.turn()
        self._close()

    def turn(self) -> None:
        """One turn: commands, one serve step, training. Waits for a command when there is nothing else to do."""
        self._take_commands()
        self._expire(time.monotonic())
        self.pressure.recover()
        self._selector.handle_masks()
        with TIMELINE.range("schedule"):
            plan = self.scheduler.schedule()
        self._stalled = not (plan.work or plan.swaps)
        if plan.swaps:
            plan = self._swap(plan)
        self._next_read = self._residency.read_on()  # after scheduling: admissions change it
        if plan.work:
            counts = {"tokens": plan.tokens, "sequences": len(plan.work), "preempted": len(plan.preempted)}
            with TIMELINE.range(plan.kind, **counts):
                self._serve(plan)
            TIMELINE.count("requests", running=self.scheduler.num_running, waiting=self.scheduler.num_waiting)
        self._flush()
        self._training.turn(serving=bool(plan.work))
        self._flush()
        self._profiler.turn()

    def idle_state(self) -> dict[str, int]:
        """What is held, by kind: all counts are 0 when nothing is running, waiting or on its way out."""
        return {
            **self.scheduler.idle_state(),
            **self._residency.idle_state(),
            "grammars": len(self._grammars),
            "scores": len(self._scores),
            "embeddings": len(self._embeddings),
            "outputs": len(self._outbox),
            "messages": self._inbox.qsize(),
            "profiles": int(bool(self._profiler.open)),
        }

    def _take_commands(self) -> None:
        """Handle all commands that came in; wait for the first if nothing can run without it."""
        wait = self._stalled and not self._training.busy
        if wait and not self.scheduler.sequences and any((held := self.scheduler.idle_state()).values()):
            raise AssertionError(f"held while idle: {held}")
        self._flush()
        try:
            # A waiting sequence with a deadline must still be ended in time.
            with TIMELINE.range("wait for commands") if wait else NOTHING:
                message = self._inbox.get(block=wait, timeout=self.next_moment() if wait else None)
            while True:
                self._handle(message)
                message = self._inbox.get_nowait()
        except queue.Empty:
            return

    def next_moment(self) -> float | None:
        """Seconds until something must be done though no command comes.

        That is a deadline, an adapter that may be read, or memory that is given back.
        """
        now = time.monotonic()
        moments = [max(0.0, s.deadline - now) for s in self.scheduler.sequences if s.deadline is not None]
        others = (self._next_read, self.pressure.moment(), self._profiler.seconds_left)
        moments += [moment for moment in others if moment is not None]
        return min(*moments, LONGEST_SLEEP) if moments else None

    def _handle(self, message: Message) -> None:
        match message:
            case StopLoop():
                self._stopping = True
            case MaskReady():
                pass  # the turn looks for masks anyway
            case ProfileWritten(id):
                self._profile_written(id)
            case AdapterRead(digest):
                self._read_ended(digest)
            case Unreadable(id, why):
                log.error("a command %s that cannot be read: %s", id or "without an id", why)
                if id and not self._lives(id):
                    self._fail(id, Error(Code.INVALID_ARGUMENT, f"the command cannot be read: {why}"))
            case AbortCommand(id):
                self._abort(id)
            case command:
                self._begin(command)

    def _begin(self, command: Command) -> None:
        id = command_id(command)
        if self._lives(id):
            # An answer under this id would end the first command in the eyes of whoever waits for it.
            log.error("a second command under the id %r, which is in use, is dropped", id)
            return
        try:
            self._execute(command)
        except Error as error:
            self._fail(id, error)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            if (seq := self.scheduler.get(id)) is not None:
                self._finish(seq)
            self._fail(id, no_memory())

    def _lives(self, id: str) -> bool:
        """Whether answers under this id are still to come."""
        return (
            self.scheduler.get(id) is not None
            or id in self._training.jobs
            or self._residency.answers(id)
            or self._profiler.answers(id)
        )

    def _execute(self, command: Command) -> None:
        match command:
            case GenerateCommand() | ScoreCommand() | EmbedCommand():
                self._add(command)
            case TrainCommand():
                refuse(train_violations(command, self._info, self._folders))
                self._residency.check(*command.stacks)
                job = command.job_id
                self._training.add(command, lambda event: self._emit(Output(job, event)))
            case LoadCommand():
                refuse(adapter_violations("adapter", command.adapter))
                self._residency.check(Stack((StackEntry(command.adapter),)))
                if self._residency.load(command.id, command.adapter):
                    self._emit(Output(command.id, done=True))
            case UnloadCommand():
                self._residency.unload(command.digest)
                self._emit(Output(command.id, done=True))
            case PinCommand():
                self._pin(command)
            case StatsCommand():
                self._emit(Output(command.id, self._read_stats(), done=True))
            case ProfileCommand():
                refuse(profile_violations(command, self._folders))
                self._profiler.start(command)

    def _add(self, command: GenerateCommand | ScoreCommand | EmbedCommand) -> None:
        seq = make_sequence(command, self._info.vocab_size, self._info.max_context)
        self._residency.check(seq.stack)
        self.scheduler.add(seq)
        self._grammars.open(seq)
        self._scores.open(seq)
        self._residency.expect(seq)

    def _abort(self, id: str) -> None:
        if (seq := self.scheduler.get(id)) is not None:
            self._finish(seq)
        if id in self._training.jobs:
            self._training.remove(id)
            self._give_back()
        self._profiler.cancel(id)

    def _profile_written(self, id: str) -> None:
        match self._profiler.collect():
            case Error() as error:
                self._fail(id, error)
            case ProfileResult() as result:
                self._emit(Output(id, result, done=True))

    def _pin(self, command: PinCommand) -> None:
        refuse(v for i, a in enumerate(command.adapters) for v in adapter_violations(f"adapters[{i}]", a))
        self._residency.pin(command.adapters)
        for seq in [s for s in self.scheduler.sequences if s.state is State.WAITING]:
            # What is pinned now may leave no capacity for it, ever.
            try:
                self._residency.check(seq.stack)
            except Error as error:
                self._end(seq, error)
        self.scheduler.admission.capacity_changed()
        self._emit(Output(command.id, done=True))

    def _read_ended(self, digest: str) -> None:
        """An adapter's files are in memory, or cannot be."""
        error, callers = self._residency.collect(digest)
        for id in callers:
            self._emit(Output(id, failure=None if error is None else Failure.of(error), done=True))
        if error is None:
            self.scheduler.admission.adapter_loaded(digest)
            now = time.monotonic()
            for seq, _ in self._users({digest}):
                seq.loaded = seq.loaded if seq.started else now
        else:
            self._end_users({digest}, error)

    def _end_users(self, digests: Collection[str], error: Error) -> set[str]:
        """End all sequences with one of these adapters in their stack, which each calls by its own name; their ids."""
        users = list(self._users(digests))
        for seq, adapter in users:
            self._end(seq, naming(adapter, error))
        return {seq.id for seq, _ in users}

    def _users(self, digests: Collection[str]) -> Iterator[tuple[Sequence, AdapterVersion]]:
        """All sequences with one of these adapters in their stack, and the first one that is."""
        for seq in self.scheduler.sequences:
            if used := next((e.adapter for e in seq.stack.entries if e.adapter.digest in digests), None):
                yield seq, used

    def _expire(self, now: float) -> None:
        for seq in self.scheduler.expired(now):
            self._end(seq, error=Error(Code.DEADLINE_EXCEEDED, "the request's deadline passed"))

    def _swap(self, plan: StepPlan) -> StepPlan:
        """Carry a plan's swaps out, and give what is left of it: requests whose adapters found no memory end."""
        failed = self._residency.apply(plan.swaps)
        message = "the device has no memory to load it; lower --kv-cache-memory, or try again later"
        return plan.without(self._end_users(failed, Error(Code.RESOURCE_EXHAUSTED, message)))

    def _serve(self, plan: StepPlan) -> None:
        started = time.monotonic()
        for seq in map(self._live, plan.started):
            seq.started = started
            self._stats.started(started - seq.arrived)
        with TIMELINE.range("forward"):
            output = self.pressure.attempt(lambda: self.runner.run(plan))
        if output is None:
            if plan.tokens == 1:
                self._end(self._live(plan.work[0].id), no_memory())
            else:
                self.pressure.halve(plan.tokens)
            return
        self.scheduler.advance(plan)
        sampling = [w for w in plan.work if w.samples]
        with TIMELINE.range("select tokens"):
            accepted = self._selector.select(
                [self._live(w.id) for w in sampling], output.next_token, [w.draft for w in sampling]
            )
            for work, count in zip(sampling, accepted, strict=True):
                self.scheduler.verified(work, count)
        self._scores.collect(plan, output.scores)
        self._embeddings.collect(plan, output.states)
        seconds = time.monotonic() - started
        self.scheduler.contention.measured(seconds)
        self._stats.step(plan.kind, seconds)

    def _live(self, id: str) -> Sequence:
        seq = self.scheduler.get(id)
        assert seq is not None
        return seq

    def _end(self, seq: Sequence, error: Error) -> None:
        self._finish(seq)
        self._fail(seq.id, error)

    def _finish(self, seq: Sequence) -> None:
        self.scheduler.finish(seq)
        self._grammars.close(seq.id)
        self._scores.close(seq.id)
        self._embeddings.close(seq.id)
        self._residency.forget(seq)

    def _fail(self, id: str, error: Error) -> None:
        self._emit(Output(id, failure=Failure.of(error), done=True))

    def _read_stats(self) -> EngineStats:
        memory = self._memory(self._training.nbytes)
        return self._stats.read(
            self.scheduler, self._residency, self.runner, self._grammars, self._training, self.pressure, memory
        )

    def _close(self) -> None:
        gone = Error(Code.UNAVAILABLE, "the server is stopping")
        for seq in self.scheduler.sequences:
            self._end(seq, error=gone)
        for job in self._training.jobs:
            self._training.remove(job)
            self._fail(job, gone)
        if id := self._profiler.open:
            self._profiler.cancel(id)
            self._fail(id, gone)
        self._residency.close()
        self._grammars.stop()
        self._flush()

    def _job_done(self, job: str, error: Error | None) -> None:
        self._emit(Output(job, failure=None if error is None else Failure.of(error), done=True))
        self._give_back()

    def _give_back(self) -> None:
        """After the last job at work: its memory is the system's again."""
        if not self._training.busy and self._info.device == "cpu":
            give_back()

    def _emit(self, output: Output) -> None:
        self._outbox.append(output)

    def _flush(self) -> None:
        if self._outbox:
            with TIMELINE.range("send outputs", outputs=len(self._outbox)):
                self._send(self._outbox)
            self._outbox = []
