"""Whether a request for a job is the one that an idempotency key was used with before."""

from __future__ import annotations

from dataclasses import replace
from itertools import zip_longest

from ...core.jobs import JobRequest
from ...core.types import StackItem
from ..adapters.refs import parse_ref


def same_job(asked: JobRequest, made: JobRequest) -> bool:
    """Whether ``made``, as it was stored, can be what became of ``asked``.

    References of ``asked`` may be as the caller wrote them: names move on, versions do not. A gate that was not asked
    for was decided by the data, which are the same.
    """
    gate = asked.gate.settled(False) if asked.gate else made.gate
    pinned = replace(asked, gate=gate, on_top_of=made.on_top_of, init_from=made.init_from)
    stacks = list(zip_longest((*asked.on_top_of, _one(asked.init_from)), (*made.on_top_of, _one(made.init_from))))
    return pinned == made and all(
        theirs is not None and ours is not None and len(theirs) == len(ours) and all(map(_means, theirs, ours))
        for theirs, ours in stacks
    )


def _one(ref: str) -> tuple[StackItem, ...]:
    return (StackItem(ref),) if ref else ()


def _means(asked: StackItem, made: StackItem) -> bool:
    """Whether ``made``, which names a version, can be what ``asked`` was resolved to."""
    ref = parse_ref(asked.adapter)
    same = asked.adapter == made.adapter if ref.version is not None else ref.name == made.adapter.partition("@")[0]
    return same and asked.weight == made.weight
