"""From a command to a sequence, and a refusal of whatever a step could not compute.

The front has checked every field by the same bounds. They are checked again because a command beyond them could raise,
or read someone else's memory, in the middle of a step that many requests share.
"""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Iterator

from ...core.backend import GenerateCommand, ScoreCommand
from ...core.bounds import MAX_STACK, WEIGHT, sampling_violations, too_many
from ...core.errors import FieldViolation, invalid
from ...core.types import SamplingParams, Stack
from .sequence import Sequence


def make_sequence(command: GenerateCommand | ScoreCommand, vocab_size: int, max_context: int) -> Sequence:
    """The sequence of a request, not queued yet. Raises INVALID_ARGUMENT that names every field at fault."""
    violations = [
        *_id_violations("prompt_ids", command.prompt_ids, vocab_size),
        *_stack_violations(command.stack),
    ]
    if not command.prompt_ids:
        violations.append(FieldViolation("prompt_ids", "is empty; give at least one token"))
    if isinstance(command, GenerateCommand):
        violations += sampling_violations(
            command.sampling,
            vocab_size,
            max_tokens=max_context,
            max_logprobs=vocab_size,
            max_logit_bias=vocab_size,
        )
        if command.seconds_left is not None and not math.isfinite(command.seconds_left):
            violations.append(
                FieldViolation("seconds_left", f"is {command.seconds_left}; leave it out for no deadline")
            )
        added = command.sampling.max_tokens
    else:
        violations += _id_violations("continuation_ids", command.continuation_ids, vocab_size)
        if not command.continuation_ids:
            violations.append(FieldViolation("continuation_ids", "is empty; give at least one token"))
        added = len(command.continuation_ids)
    if len(command.prompt_ids) + added > max_context:
        what = f"has {len(command.prompt_ids)} tokens and {added} are to follow"
        violations.append(
            FieldViolation("prompt_ids", f"{what}; the model's context is {max_context} tokens. Shorten one of them")
        )
    if violations:
        raise invalid(violations)
    seq = Sequence(
        id=command.id,
        tokens=list(command.prompt_ids),
        prompt_length=len(command.prompt_ids),
        stack=command.stack,
        sampling=SamplingParams(),
        seed=0,
        tenant=command.tenant,
        arrived=time.monotonic(),
    )
    if isinstance(command, ScoreCommand):
        seq.score_from = len(seq.tokens)
        seq.tokens += command.continuation_ids
        seq.prompt_length = len(seq.tokens)
    else:
        seq.sampling, seq.grammar = command.sampling, command.grammar
        seq.deadline = None if command.seconds_left is None else seq.arrived + command.seconds_left
        seq.seed = secrets.randbits(63) if command.sampling.seed is None else command.sampling.seed
    return seq


def _id_violations(field: str, ids: tuple[int, ...], vocab_size: int) -> Iterator[FieldViolation]:
    if ids and not (min(ids) >= 0 and max(ids) < vocab_size):
        at, bad = next((i, t) for i, t in enumerate(ids) if not 0 <= t < vocab_size)
        yield FieldViolation(f"{field}[{at}]", f"is {bad}; ids go from 0 to {vocab_size - 1}")


def _stack_violations(stack: Stack) -> Iterator[FieldViolation]:
    yield from too_many("stack", len(stack.entries), MAX_STACK, "entries")
    if len({e.adapter.digest for e in stack.entries}) < len(stack.entries):
        yield FieldViolation("stack", "has an adapter version twice; add its weights up instead")
    for i, entry in enumerate(stack.entries):
        if entry.adapter.rank < 1:
            yield FieldViolation(f"stack[{i}].adapter", f"has rank {entry.adapter.rank}; it must be at least 1")
        yield from WEIGHT.violations(f"stack[{i}].weight", entry.weight)
