"""What the engine counts about itself, as the front asks for it."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter

from ..core.backend import QUEUE_WAIT_BOUNDS, EngineStats
from .execution.model_runner import ModelRunner
from .gpu import Gpu
from .grammar.masks import GrammarMasks
from .memory_pressure import MemoryPressure
from .residency.manager import ResidencyManager
from .scheduling.scheduler import Scheduler
from .scheduling.sequence import State
from .training_share import TrainingShare


class StatsCollector:
    """Counts steps and waits, and reads the counters of the engine's parts."""

    def __init__(self, gpu: Gpu | None = None) -> None:
        self._gpu = gpu
        self._steps: dict[str, tuple[int, float]] = {}
        self._waits = [0] * (len(QUEUE_WAIT_BOUNDS) + 1)
        self._waited = 0.0

    def step(self, kind: str, seconds: float) -> None:
        """A step of that kind took so long."""
        count, total = self._steps.get(kind, (0, 0.0))
        self._steps[kind] = count + 1, total + seconds

    def started(self, seconds: float) -> None:
        """A request started so long after it came."""
        self._waits[bisect_left(QUEUE_WAIT_BOUNDS, seconds)] += 1
        self._waited += seconds

    def read(
        self,
        scheduler: Scheduler,
        residency: ResidencyManager,
        runner: ModelRunner,
        grammars: GrammarMasks,
        training: TrainingShare,
        pressure: MemoryPressure,
        memory: dict[str, int],
    ) -> EngineStats:
        """Everything as of now."""
        pages = scheduler.pages
        running: Counter[str] = Counter()
        waiting: Counter[str] = Counter()
        for seq in scheduler.sequences:
            digests = (entry.adapter.digest for entry in seq.stack.entries)
            (waiting if seq.state is State.WAITING else running).update(digests)
        steps = dict(self._steps)
        if training.stretches:
            steps["train"] = training.stretches, training.seconds
        return EngineStats(
            running=scheduler.num_running,
            waiting=scheduler.num_waiting,
            kv_pages_used=pages.held,
            kv_pages_total=pages.pages,
            kv_bytes_total=runner.kv.nbytes,
            memory=memory,
            resident=residency.resident,
            gpu=None if self._gpu is None else self._gpu.read(),
            adapters_running=dict(running),
            adapters_waiting=dict(waiting),
            adapter_rows_used=runner.bank.used_rows,
            adapter_rows_total=runner.bank.rows,
            resident_bytes={"device": runner.bank.used_bytes, "host": residency.host_bytes},
            adapter_loads=residency.loads,
            adapter_hits=dict(residency.hits),
            adapter_evictions=runner.bank.evictions,
            preemptions=scheduler.preemptions,
            draft_tokens=scheduler.drafter.drafted if scheduler.drafter is not None else 0,
            accepted_tokens=scheduler.drafter.accepted if scheduler.drafter is not None else 0,
            prefix_hit_tokens=pages.hit_tokens,
            steps=steps,
            training_jobs=training.jobs,
            suspended_jobs=training.suspended,
            step_limits={"tokens": scheduler.limits.max_batch_tokens, "sequences": scheduler.limits.max_running},
            out_of_memory=dict(pressure.counts),
            cuda_graphs=None if runner.graphs is None else runner.graphs.count,
            cuda_graph_failures=0 if runner.graphs is None else runner.graphs.failures,
            queue_waits=tuple(self._waits),
            queue_wait_seconds=self._waited,
            grammars=grammars.counts,
        )
