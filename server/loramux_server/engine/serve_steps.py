"""Serve steps, one of them ahead of the host: the next is launched before the tokens of the one before are handled.

A device that computes while the host goes on would wait for the host at the end of each step. So a step is planned as
if every sequence went on, takes its tokens from the device, and only then the host reads those of the step before:
it emits them, ends what is complete, and drops the rows of the launched step that turn out to be of no use. Their
keys and values lie beyond what counts as computed, in pages that are free again. Token selection is launched when the
tokens before are known, so it is the same as without.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass, replace
from itertools import accumulate, compress

from ..core.observing.timeline import TIMELINE
from .execution.failures import no_memory
from .execution.model_runner import NONE_CHOSEN, ModelRunner, StepOutput
from .execution.token_selection import Selection, Settled
from .live_sequences import LiveSequences
from .memory_pressure import MemoryPressure
from .scheduling.plan import StepPlan, Work
from .scheduling.scheduler import Scheduler
from .scheduling.sequence import Sequence, State
from .stats import StatsCollector


@dataclass(frozen=True, slots=True)
class PendingStep:
    """A step that is launched, and whose tokens the host does not know yet."""

    plan: StepPlan
    seqs: tuple[Sequence, ...]
    """Those of the plan's works. Their ids may be others' by now."""
    output: StepOutput
    selection: Selection
    launched: float
    """On the monotonic clock."""


def _ended(step: PendingStep) -> set[str]:
    """Ids of sequences that ended since the step was launched; another may have taken the id."""
    return {work.id for work, seq in zip(step.plan.work, step.seqs, strict=True) if seq.state is State.FINISHED}


class ServeSteps:
    """Launches the plans of a scheduler, and settles them: gives out what they computed.

    Belongs to the loop's thread.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        runner: ModelRunner,
        sequences: LiveSequences,
        pressure: MemoryPressure,
        stats: StatsCollector,
    ) -> None:
        self.pending: PendingStep | None = None
        self._scheduler, self._runner, self._sequences = scheduler, runner, sequences
        self._pressure, self._stats = pressure, stats
        self._settled = 0.0  # when the last step was

    def serve(self, plan: StepPlan, ahead: bool) -> None:
        """Compute a step whose swaps are done. Where it goes ``ahead``, its tokens stay pending until the next one."""
        now = time.monotonic()
        for seq in map(self._sequences.live, plan.started):
            seq.started = now
            self._stats.started(now - seq.arrived)
        self._launch(plan, now)
        if not ahead:
            self.settle()

    def settle(self) -> Settled:
        """Wait for the pending step, if there is one, and give out what it computed."""
        step, self.pending = self.pending, None
        if step is None:
            return {}
        with TIMELINE.range("select tokens"):
            settled = self._sequences.selector.settle(step.selection)
        self._end(step.plan, _ended(step), step.output, step.launched)
        return settled

    def settle_before(self, plan: StepPlan) -> StepPlan:
        """Settle the pending step, and give what is left of a plan made before: all of its tokens are known then."""
        self.settle()
        works = [(work, self._sequences.get(work.id)) for work in plan.work]
        known = (
            replace(work, tokens=(seq.tokens[-1],), pending=False) if work.pending else work
            for work, seq in works
            if seq is not None
        )
        return replace(plan, work=tuple(known))

    def _launch(self, plan: StepPlan, launched: float) -> None:
        seqs = tuple(self._sequences.live(work.id) for work in plan.work)
        before = self.pending
        with TIMELINE.range("forward"):
            output = self._pressure.attempt(
                lambda: self._runner.run(plan, NONE_CHOSEN if before is None else before.selection.chosen())
            )
        if output is None:
            if before is not None:  # what it holds may be missing
                if (left := self.settle_before(plan)).work:
                    self._launch(left, launched)
            elif plan.tokens == 1:
                self._sequences.end(seqs[0], no_memory())
            else:
                self._pressure.halve(plan.tokens)
            return
        settled = self.settle()
        useful = [
            seq.state is State.RUNNING and (not work.pending or settled.get(seq, False))
            for work, seq in zip(plan.work, seqs, strict=True)
        ]
        step = plan.without({work.id for work, use in zip(plan.work, useful, strict=True) if not use})
        self._scheduler.advance(step)
        firsts = accumulate((len(work.draft) + 1 if work.samples else 0 for work in plan.work), initial=0)
        rows = [
            (work, seq, row)
            for work, seq, row, use in zip(plan.work, seqs, firsts, useful, strict=False)
            if use and work.samples
        ]
        with TIMELINE.range("select tokens"):
            if any(work.draft for work in step.work):
                self._select(rows, output)
                self._end(step, set(), output, launched)
            elif step.work:
                selection = self._sequences.selector.launch(
                    [seq for _, seq, _ in rows], output.next_token, [row for _, _, row in rows]
                )
                self.pending = PendingStep(step, tuple(compress(seqs, useful)), output, selection, launched)

    def _select(self, rows: list[tuple[Work, Sequence, int]], output: StepOutput) -> None:
        """Select the tokens of a step with drafts: each follows from the one before, so the host waits for them."""
        works, seqs, firsts = zip(*rows, strict=True)
        drafts = [work.draft for work in works]
        accepted = self._sequences.selector.select(seqs, output.next_token, firsts, drafts)
        for work, count in zip(works, accepted, strict=True):
            self._scheduler.verified(work, count)

    def _end(self, plan: StepPlan, ended: Collection[str], output: StepOutput, launched: float) -> None:
        """Give out the other results of a step, but for works of ``ended`` sequences, and note how long it took."""
        left = plan.without(ended)
        self._sequences.scores.collect(left, output.scores)
        self._sequences.embeddings.collect(left, output.states)
        now = time.monotonic()
        seconds, self._settled = now - max(launched, self._settled), now
        self._scheduler.contention.measured(plan.mix, seconds)
        self._stats.step(plan.kind, seconds)
