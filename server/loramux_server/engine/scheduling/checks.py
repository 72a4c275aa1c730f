"""From a command to a sequence, and a refusal of whatever a step could not compute.

The front has checked every field with better words. What is checked here again is only what would raise, or read
someone else's memory, in the middle of a step that many requests share.
"""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Iterator

from ...core.backend import GenerateCommand, ScoreCommand
from ...core.errors import FieldViolation, invalid
from ...core.types import MAX_STACK, SamplingParams, Stack
from .sequence import Sequence

LARGEST = 1e30
"""Bound of biases, penalties and weights: float32 holds it, and a product of two such still ends as infinity."""


def make_sequence(command: GenerateCommand | ScoreCommand, vocab_size: int, max_context: int) -> Sequence:
    """The sequence of a request, not queued yet. Raises INVALID_ARGUMENT that names every field at fault."""
    violations = [
        *_id_violations("prompt_ids", command.prompt_ids, vocab_size),
        *_stack_violations(command.stack),
    ]
    if not command.prompt_ids:
        violations.append(FieldViolation("prompt_ids", "is empty; give at least one token"))
    if isinstance(command, GenerateCommand):
        violations += _sampling_violations(command.sampling, vocab_size)
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
    if len(stack.entries) > MAX_STACK:
        yield FieldViolation("stack", f"has {len(stack.entries)} entries, at most {MAX_STACK} are allowed")
    if len({e.adapter.digest for e in stack.entries}) < len(stack.entries):
        yield FieldViolation("stack", "has an adapter version twice; add its weights up instead")
    for i, entry in enumerate(stack.entries):
        if entry.adapter.rank < 1:
            yield FieldViolation(f"stack[{i}].adapter", f"has rank {entry.adapter.rank}; it must be at least 1")
        yield from _number_violations(f"stack[{i}].weight", entry.weight, -LARGEST)


def _sampling_violations(s: SamplingParams, vocab_size: int) -> Iterator[FieldViolation]:
    if s.max_tokens < 1:
        yield FieldViolation("max_tokens", f"is {s.max_tokens}; it must be at least 1")
    if s.logprobs is not None and not 0 <= s.logprobs <= vocab_size:
        yield FieldViolation("logprobs", f"is {s.logprobs}; it must be between 0 and {vocab_size}")
    if not 0 < s.top_p <= 1:
        yield FieldViolation("top_p", f"is {s.top_p}; it must be above 0 and at most 1")
    if s.top_k < 0:
        yield FieldViolation("top_k", f"is {s.top_k}; it must be at least 0")
    if not 0 <= s.min_p <= 1:
        yield FieldViolation("min_p", f"is {s.min_p}; it must be between 0 and 1")
    if not 0 < s.repetition_penalty <= LARGEST:
        yield FieldViolation("repetition_penalty", f"is {s.repetition_penalty}; it must be above 0")
    yield from _number_violations("temperature", s.temperature, 0)
    yield from _number_violations("presence_penalty", s.presence_penalty, -LARGEST)
    yield from _number_violations("frequency_penalty", s.frequency_penalty, -LARGEST)
    yield from _id_violations("stop_token_ids", s.stop_token_ids, vocab_size)
    yield from _id_violations("logit_bias", tuple(token for token, _ in s.logit_bias), vocab_size)
    for token, bias in s.logit_bias:
        yield from _number_violations(f"logit_bias[{token}]", bias, -LARGEST)


def _number_violations(field: str, value: float, low: float) -> Iterator[FieldViolation]:
    if not low <= value <= LARGEST:  # NaN lies nowhere
        yield FieldViolation(field, f"is {value}; it must be between {low:g} and {LARGEST:g}")
