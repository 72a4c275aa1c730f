"""Which requests are let in, and which may start: those whose adapters are resident, with patience for others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from ...core.errors import Code, Error
from ...core.types import Stack
from ...lora.slots import Entries, Swap
from .fairness import FairQueue
from .pages import PagePool
from .plan import Admission, StepLimits
from .sequence import Sequence

PATIENCE = 32
"""Requests with adapters that may start before one whose own do not fit; then those in use are let run out."""


def check_capacity(seq: Sequence, pages: PagePool, limits: StepLimits, queue: FairQueue) -> None:
    """Raise RESOURCE_EXHAUSTED for a request that the KV cache could never hold, or that the queue has no place for.

    A full queue still has a place for a tenant that has less than its even share of it.
    """
    if pages.needed(seq.limit) > pages.pages:
        raise Error(
            Code.RESOURCE_EXHAUSTED,
            f"the request may need {seq.limit} tokens of KV cache and there are {pages.pages * pages.page_size}; "
            "lower max_tokens or raise --kv-cache-memory",
            reason="KV_CACHE_TOO_SMALL",
        )
    tenants = len(queue.live.keys() | {seq.tenant})
    if len(queue) >= limits.max_queue and queue.waiting(seq.tenant) * tenants >= limits.max_queue:
        raise Error(
            Code.RESOURCE_EXHAUSTED,
            f"the queue is full ({limits.max_queue} requests wait)",
            reason="QUEUE_FULL",
            retry_after=1.0,
        )


class Adapters(Protocol):
    """The adapters on the device, as the scheduler sees them: slots, sizes and refcounts."""

    def acquire(self, seq: Sequence) -> Admission:
        """Give the stack of a sequence its slots and count it as in use, or change nothing and say why."""
        ...

    def release(self, stack: Stack) -> None:
        """Take back one successful :meth:`acquire`."""
        ...

    def entries(self, stack: Stack) -> Entries:
        """The slots and weights of an acquired stack. They hold until the next :meth:`acquire`."""
        ...

    def drain_swaps(self) -> tuple[Swap, ...]:
        """What the device has to load, since the last call, before it computes with these slots."""
        ...


class AdmissionControl:
    """Asks for adapters, and asks again only where something has changed since the last refusal.

    A refusal stands until :meth:`adapter_loaded` or :meth:`capacity_changed`. ``ready`` is asked first: False keeps a
    sequence waiting.
    """

    def __init__(self, adapters: Adapters, ready: Callable[[Sequence], bool]) -> None:
        self._adapters, self._ready = adapters, ready
        self._refused: dict[str, tuple[Sequence, Admission, int]] = {}  # by id, with _capacity at that time
        self._capacity = 0  # counts the moments at which there was more capacity for adapters

    def __len__(self) -> int:
        """Sequences whose refusal is remembered."""
        return len(self._refused)

    def admit(self, waiting: Iterable[Sequence], start: Callable[[Sequence], bool]) -> Iterator[Sequence]:
        """Start waiting sequences one at a time, in their order; ``start`` gives False when pages are short.

        ``waiting`` then ends, or goes on with those that may overtake.

        A sequence whose adapters are not loaded holds up nobody: those whose adapters are resident overtake it,
        PATIENCE of them at most where the adapters just do not fit now.
        """
        full: list[Sequence] = []  # those whose adapters do not fit beside the ones in use
        out_of_patience = False
        for seq in waiting:
            if (seq.stack and out_of_patience) or not self._ready(seq):
                continue
            admission = self._ask(seq)
            if admission is not Admission.READY:
                if admission is Admission.FULL:
                    full.append(seq)
                    out_of_patience = out_of_patience or seq.num_overtaken >= PATIENCE
                continue
            if not start(seq):
                if seq.stack:
                    self._adapters.release(seq.stack)
                continue
            seq.num_overtaken = 0
            for other in full if seq.stack else ():
                other.num_overtaken += 1
                out_of_patience = out_of_patience or other.num_overtaken >= PATIENCE
            yield seq

    def leave(self, seq: Sequence) -> None:
        """Release the adapters of a sequence that stops running."""
        if seq.stack:
            self._adapters.release(seq.stack)
            self.capacity_changed()

    def forget(self, seq: Sequence) -> None:
        """Forget that a sequence was refused."""
        self._refused.pop(seq.id, None)

    def adapter_loaded(self, digest: str) -> None:
        """An adapter is in memory: those that wait for it are tried again."""
        for id, (seq, _, _) in list(self._refused.items()):
            if any(e.adapter.digest == digest for e in seq.stack.entries):
                del self._refused[id]

    def capacity_changed(self) -> None:
        """There may be more capacity for adapters: those whose adapters did not fit are tried again."""
        self._capacity += 1

    def _ask(self, seq: Sequence) -> Admission:
        """Acquire the stack of ``seq``; bank and disk are asked only where something has changed."""
        if not seq.stack:
            return Admission.READY
        _, last, capacity = self._refused.get(seq.id, (seq, Admission.READY, 0))
        if last is Admission.LOADING or (last is Admission.FULL and capacity == self._capacity):
            return last
        admission = self._adapters.acquire(seq)
        if admission is Admission.READY:
            self._refused.pop(seq.id, None)
        else:
            self._refused[seq.id] = seq, admission, self._capacity
        return admission
