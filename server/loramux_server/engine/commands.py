"""What the loop does with each message of its inbox: commands of the front, and news of the engine's own threads."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from ..core.backend import (
    EmbedCommand,
    EngineInfo,
    EngineStats,
    GenerateCommand,
    ProfileCommand,
    ProfileResult,
    ScoreCommand,
)
from ..core.errors import Code, Error
from ..core.jobs import TrainCommand
from ..core.types import Stack, StackEntry
from ..cpu.heap import give_back
from ..model.out_of_memory import out_of_memory
from .checks import adapter_violations, profile_violations, refuse, train_violations
from .execution.failures import no_memory
from .inbox import AdapterRead, MaskReady, Message, ProfileWritten, StopLoop
from .live_sequences import LiveSequences
from .outbox import Outbox
from .profiling.profiler import Profiler
from .residency.manager import ResidencyManager
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


class CommandHandler:
    """Carries messages out, or answers why not. ``folders``: where jobs and profiles may write; None: anywhere.

    Belongs to the loop's thread.
    """

    def __init__(
        self,
        info: EngineInfo,
        folders: Sequence[str] | None,
        sequences: LiveSequences,
        residency: ResidencyManager,
        training: TrainingShare,
        profiler: Profiler,
        outbox: Outbox,
        read_stats: Callable[[], EngineStats],
    ) -> None:
        self.stopping = False
        """Whether the loop was told to end."""
        self._info, self._folders, self._read_stats = info, folders, read_stats
        self._sequences, self._residency, self._training = sequences, residency, training
        self._profiler, self._outbox = profiler, outbox

    def handle(self, message: Message) -> None:
        """Carry a message out. A command that cannot be fails alone."""
        match message:
            case StopLoop():
                self.stopping = True
            case MaskReady():
                pass  # the turn looks for masks anyway
            case ProfileWritten(id):
                self._profile_written(id)
            case AdapterRead(digest):
                self._read_ended(digest)
            case Unreadable(id, why):
                log.error("a command %s that cannot be read: %s", id or "without an id", why)
                if id and not self._lives(id):
                    self._outbox.fail(id, Error(Code.INVALID_ARGUMENT, f"the command cannot be read: {why}"))
            case AbortCommand(id):
                self._abort(id)
            case command:
                self._begin(command)

    def job_ended(self, job: str, error: Error | None) -> None:
        """A job is done, or failed."""
        self._outbox.emit(Output(job, failure=None if error is None else Failure.of(error), done=True))
        self._give_back()

    def _begin(self, command: Command) -> None:
        id = command_id(command)
        if self._lives(id):
            # An answer under this id would end the first command in the eyes of whoever waits for it.
            log.error("a second command under the id %r, which is in use, is dropped", id)
            return
        try:
            self._execute(command)
        except Error as error:
            self._outbox.fail(id, error)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            if (seq := self._sequences.get(id)) is not None:
                self._sequences.finish(seq)
            self._outbox.fail(id, no_memory())

    def _lives(self, id: str) -> bool:
        """Whether answers under this id are still to come."""
        return (
            self._sequences.get(id) is not None
            or id in self._training.jobs
            or self._residency.answers(id)
            or self._profiler.answers(id)
        )

    def _execute(self, command: Command) -> None:
        emit = self._outbox.emit
        match command:
            case GenerateCommand() | ScoreCommand() | EmbedCommand():
                self._sequences.add(command)
            case TrainCommand():
                refuse(train_violations(command, self._info, self._folders))
                self._residency.check(*command.stacks)
                job = command.job_id
                self._training.add(command, lambda event: emit(Output(job, event)))
            case LoadCommand():
                refuse(adapter_violations("adapter", command.adapter))
                self._residency.check(Stack((StackEntry(command.adapter),)))
                if self._residency.load(command.id, command.adapter):
                    emit(Output(command.id, done=True))
            case UnloadCommand():
                self._residency.unload(command.digest)
                emit(Output(command.id, done=True))
            case PinCommand():
                refuse(v for i, a in enumerate(command.adapters) for v in adapter_violations(f"adapters[{i}]", a))
                self._residency.pin(command.adapters)
                self._sequences.pins_changed()
                emit(Output(command.id, done=True))
            case StatsCommand():
                emit(Output(command.id, self._read_stats(), done=True))
            case ProfileCommand():
                refuse(profile_violations(command, self._folders))
                self._profiler.start(command)

    def _abort(self, id: str) -> None:
        if (seq := self._sequences.get(id)) is not None:
            self._sequences.finish(seq)
        if id in self._training.jobs:
            self._training.remove(id)
            self._give_back()
        self._profiler.cancel(id)

    def _profile_written(self, id: str) -> None:
        match self._profiler.collect():
            case Error() as error:
                self._outbox.fail(id, error)
            case ProfileResult() as result:
                self._outbox.emit(Output(id, result, done=True))

    def _read_ended(self, digest: str) -> None:
        """An adapter's files are in memory, or cannot be."""
        error, callers = self._residency.collect(digest)
        for id in callers:
            self._outbox.emit(Output(id, failure=None if error is None else Failure.of(error), done=True))
        if error is None:
            self._sequences.adapter_read(digest)
        else:
            self._sequences.end_users({digest}, error)

    def _give_back(self) -> None:
        """After the last job at work: its memory is the system's again."""
        if not self._training.busy and self._info.device == "cpu":
            give_back()
