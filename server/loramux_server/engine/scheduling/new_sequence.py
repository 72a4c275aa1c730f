"""From a command to a sequence, and a refusal of whatever a step could not compute.

The front has checked every field by the same bounds. They are checked again because a command beyond them could raise,
or read someone else's memory, in the middle of a step that many requests share.
"""

from __future__ import annotations

import math
import secrets
import time

from ...core.backend import EmbedCommand, GenerateCommand, ScoreCommand
from ...core.bounds import GREEDY_BELOW, MAX_GRAMMAR_BYTES, sampling_violations, text_violations
from ...core.errors import FieldViolation
from ...core.types import SamplingParams
from ..checks import name_violations, refuse, stack_violations, token_violations
from .sequence import Sequence

MAX_LOGPROBS = 1024


def make_sequence(
    command: GenerateCommand | ScoreCommand | EmbedCommand, vocab_size: int, max_context: int
) -> Sequence:
    """The sequence of a request, not queued yet. Raises INVALID_ARGUMENT that names every field at fault."""
    violations = [
        *name_violations("id", command.id),
        *name_violations("tenant", command.tenant),
        *token_violations("prompt_ids", command.prompt_ids, vocab_size),
        *stack_violations("stack", command.stack),
    ]
    if not command.prompt_ids:
        violations.append(FieldViolation("prompt_ids", "is empty; give at least one token"))
    if isinstance(command, GenerateCommand):
        violations += sampling_violations(
            command.sampling,
            vocab_size,
            max_tokens=max_context,
            max_logprobs=min(MAX_LOGPROBS, vocab_size),
            max_logit_bias=vocab_size,
        )
        if 0 < command.sampling.temperature < GREEDY_BELOW:
            violations.append(FieldViolation("temperature", "is too small to divide by; 0 is greedy"))
        if command.grammar is not None:
            violations += text_violations("grammar", command.grammar.text, MAX_GRAMMAR_BYTES)
        if command.seconds_left is not None and not math.isfinite(command.seconds_left):
            violations.append(
                FieldViolation("seconds_left", f"is {command.seconds_left}; leave it out for no deadline")
            )
        added = command.sampling.max_tokens
    elif isinstance(command, ScoreCommand):
        violations += token_violations("continuation_ids", command.continuation_ids, vocab_size)
        if not command.continuation_ids:
            violations.append(FieldViolation("continuation_ids", "is empty; give at least one token"))
        added = len(command.continuation_ids)
    else:
        added = 0
    if len(command.prompt_ids) + added > max_context:
        what = f"has {len(command.prompt_ids)} tokens and {added} are to follow"
        violations.append(
            FieldViolation("prompt_ids", f"{what}; the model's context is {max_context} tokens. Shorten one of them")
        )
    refuse(violations)
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
    elif isinstance(command, EmbedCommand):
        seq.pooling, seq.normalize = command.pooling, command.normalize
    else:
        seq.sampling, seq.grammar = command.sampling, command.grammar
        seq.deadline = None if command.seconds_left is None else seq.arrived + command.seconds_left
        seq.seed = secrets.randbits(63) if command.sampling.seed is None else command.sampling.seed
    return seq
