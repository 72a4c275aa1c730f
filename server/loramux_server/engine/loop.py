"""The engine loop: one thread that owns the model. A turn takes commands, runs one serve step, then trains a little."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable

import torch

from ..core.backend import EngineInfo, EngineStats
from ..core.background import Background
from ..core.errors import Code, Error
from ..core.observing.timeline import NOTHING, TIMELINE
from ..core.settings import AsyncScheduling, EngineSettings
from .commands import CommandHandler
from .execution.model_runner import ModelRunner
from .gpu import Gpu
from .grammar.masks import GrammarMasks
from .inbox import Inbox, StopLoop
from .live_sequences import LiveSequences
from .memory_pressure import MemoryPressure
from .outbox import Outbox
from .profiling.profiler import Profiler
from .residency.manager import ResidencyManager
from .scheduling.plan import StepPlan
from .scheduling.scheduler import Scheduler
from .serve_steps import ServeSteps
from .stats import StatsCollector
from .training_share import TrainingShare
from .transport.protocol import Command, Output
from .transport.wire import Unreadable

LONGEST_SLEEP = 3600.0
"""Seconds after which an idle loop looks up again, however far away the next deadline is."""


def goes_ahead(choice: AsyncScheduling, device: torch.device) -> bool:
    """Whether steps are launched before the tokens of those before are handled; auto: where a device runs by itself."""
    return choice == "on" or (choice == "auto" and device.type == "cuda")


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
        self._outbox = outbox = Outbox(emit)
        self._training = TrainingShare(
            background, share, slice_seconds, done=lambda job, error: self._commands.job_ended(job, error)
        )
        self._memory = memory
        self.pressure = MemoryPressure(scheduler, self._training)
        self._stats = StatsCollector(Gpu(runner.base.device) if runner.base.device.type == "cuda" else None)
        self._sequences = LiveSequences(info, scheduler, residency, grammars, outbox, self.pressure)
        self._commands = CommandHandler(
            info, settings.folders, self._sequences, residency, self._training, profiler, outbox, self._read_stats
        )
        self._steps = ServeSteps(scheduler, runner, self._sequences, self.pressure, self._stats)
        self._ahead = goes_ahead(settings.async_scheduling, runner.base.device)
        self._next_read: float | None = None
        self._stalled = True  # the last turn found nothing to compute

    def submit(self, command: Command | Unreadable) -> None:
        """Hand in a command; its outputs come through ``emit``, a list a turn, from the loop's thread."""
        self._inbox.put(command)

    def stop(self) -> None:
        """End the loop after the turn in progress; what is still open fails with UNAVAILABLE."""
        self._inbox.put(StopLoop())

    def run(self) -> None:
        """Turn until stopped."""
        while not self._commands.stopping:
            self.turn()
        self._close()

    def turn(self) -> None:
        """One turn: commands, one serve step, training. Waits for a command when there is nothing else to do."""
        self._take_commands()
        self._sequences.expire(time.monotonic())
        self.pressure.recover()
        self._sequences.selector.handle_masks()
        if not self.scheduler.foresees:
            self._steps.settle()
        with TIMELINE.range("schedule"):
            plan = self.scheduler.schedule()
        self._stalled = not (plan.work or plan.swaps or self._steps.pending)
        if plan.swaps:
            plan = self._swap(plan)
        self._next_read = self._residency.read_on()  # after scheduling: admissions change it
        if plan.work:
            counts = {"tokens": plan.tokens, "sequences": len(plan.work), "preempted": len(plan.preempted)}
            with TIMELINE.range(plan.kind, **counts):
                # The credit of training is measured in the time of whole steps.
                self._steps.serve(plan, self._ahead and not self._training.busy)
            TIMELINE.count("requests", running=self.scheduler.num_running, waiting=self.scheduler.num_waiting)
        else:
            self._steps.settle()
        self._outbox.flush()
        self._training.turn(serving=bool(plan.work))
        self._outbox.flush()
        self._profiler.turn()

    def idle_state(self) -> dict[str, int]:
        """What is held, by kind: all counts are 0 when nothing is running, waiting or on its way out."""
        return {
            **self.scheduler.idle_state(),
            **self._residency.idle_state(),
            **self._sequences.idle_state(),
            "pending": int(self._steps.pending is not None),
            "outputs": len(self._outbox),
            "messages": self._inbox.qsize(),
            "profiles": int(bool(self._profiler.open)),
        }

    def _take_commands(self) -> None:
        """Handle all commands that came in; wait for the first if nothing can run without it."""
        wait = self._stalled and not self._training.busy
        if wait and not self.scheduler.sequences and any((held := self.scheduler.idle_state()).values()):
            raise AssertionError(f"held while idle: {held}")
        self._outbox.flush()
        try:
            # A waiting sequence with a deadline must still be ended in time.
            with TIMELINE.range("wait for commands") if wait else NOTHING:
                message = self._inbox.get(block=wait, timeout=self.next_moment() if wait else None)
            while True:
                self._commands.handle(message)
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

    def _swap(self, plan: StepPlan) -> StepPlan:
        """Carry a plan's swaps out, and give what is left of it: requests whose adapters found no memory end."""
        plan = self._steps.settle_before(plan)
        failed = self._residency.apply(plan.swaps)
        message = "the device has no memory to load it; lower --kv-cache-memory, or try again later"
        return plan.without(self._sequences.end_users(failed, Error(Code.RESOURCE_EXHAUSTED, message)))

    def _read_stats(self) -> EngineStats:
        memory = self._memory(self._training.nbytes)
        return self._stats.read(
            self.scheduler, self._residency, self.runner, self._grammars, self._training, self.pressure, memory
        )

    def _close(self) -> None:
        self._steps.settle()
        gone = Error(Code.UNAVAILABLE, "the server is stopping")
        for seq in self.scheduler.sequences:
            self._sequences.end(seq, gone)
        for job in self._training.jobs:
            self._training.remove(job)
            self._outbox.fail(job, gone)
        if id := self._profiler.open:
            self._profiler.cancel(id)
            self._outbox.fail(id, gone)
        self._residency.close()
        self._grammars.stop()
        self._outbox.flush()
