"""Bounds of what a caller may ask for, each in one place, and the words for what lies outside.

The front applies them to requests and rows, and the engine again to its commands, because it trusts nobody.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from .errors import FieldViolation
from .types import SamplingParams

MAX_STACK = 8
"""Most entries of a stack."""
MAX_STOPS, MAX_STOP_CHARS, MAX_STOP_TOKENS = 16, 512, 64
MAX_METADATA, MAX_METADATA_BYTES = 64, 4096
"""Most entries of metadata, and most bytes of one, its key included."""
GREEDY_BELOW = 1e-4
"""Temperatures under this are greedy: dividing by them would overflow."""
MAX_GRAMMAR_BYTES = 1 << 20
"""Longest text of a grammar that the engine takes; callers may send far less."""
NOT_UNICODE = "is not valid Unicode (lone surrogate)"


@dataclass(frozen=True, slots=True)
class Bound:
    """Numbers from ``low`` to ``high``, without these where ``above`` or ``below`` is set. NaN lies nowhere."""

    low: float
    high: float = math.inf
    above: bool = False
    below: bool = False
    limit: str = ""
    """Name of the limit of the server that ``high`` is; see :meth:`within`."""
    note: str = ""
    """What a value of the range means, such as ``0 is off``."""

    def __contains__(self, value: float) -> bool:
        open_ends = (self.above and value == self.low) or (self.below and value == self.high)
        return self.low <= value <= self.high and not open_ends

    def __str__(self) -> str:
        low, high = _number(self.low), _number(self.high)
        note = f" ({self.note})" if self.note else ""
        if self.below:
            return f"at least {low} and below {high}{note}"
        return f"above {low} and at most {high}{note}" if self.above else f"between {low} and {high}{note}"

    def within(self, limits: Mapping[str, float]) -> Bound:
        """The bound with the server's limit in place of ``high``, if it names one."""
        return replace(self, high=limits[self.limit]) if self.limit else self

    def violations(self, field: str, value: float) -> Iterator[FieldViolation]:
        """What is wrong with a value, if anything is."""
        if value not in self:
            yield FieldViolation(field, f"is {_number(value)}; it must be {self}")


@dataclass(frozen=True, slots=True)
class OneOf:
    """Words, one of which a value must be."""

    words: tuple[str, ...]

    def within(self, limits: Mapping[str, float]) -> OneOf:
        return self

    def violations(self, field: str, value: str) -> Iterator[FieldViolation]:
        """What is wrong with a value, if anything is."""
        if value not in self.words:
            yield FieldViolation(field, f"is {value[:80]!a}; it must be one of {', '.join(self.words)}")


WEIGHT = Bound(-100.0, 100.0)
"""Of an adapter in a stack."""
LOGIT_BIAS = Bound(-100.0, 100.0)
SEED = Bound(-(2**63), 2**63 - 1)
SAMPLING = {
    "temperature": Bound(0, 10.0, note="0 is greedy"),
    "top_p": Bound(0, 1, above=True, note="1 is off"),
    "top_k": Bound(0, 2**31 - 1, note="0 is off"),
    "min_p": Bound(0, 1, note="0 is off"),
    "repetition_penalty": Bound(0, 10.0, above=True, note="1 is off"),
    "presence_penalty": Bound(-2.0, 2.0),
    "frequency_penalty": Bound(-2.0, 2.0),
}
"""Of the fields of :class:`SamplingParams` that are plain numbers."""


def sampling_violations(
    s: SamplingParams, vocab_size: int, *, max_tokens: int, max_logprobs: int, max_logit_bias: int
) -> Iterator[FieldViolation]:
    """Every field of the sampling that is out of bounds."""
    yield from Bound(1, max_tokens).violations("max_tokens", s.max_tokens)
    yield from Bound(0, max(s.max_tokens, 1), note="max_tokens").violations("min_tokens", s.min_tokens)
    for field, bound in SAMPLING.items():
        yield from bound.violations(field, getattr(s, field))
    yield from too_many("logit_bias", len(s.logit_bias), max_logit_bias, "entries")
    token_ids, seen = Bound(0, vocab_size - 1), set[int]()
    for token, bias in s.logit_bias if len(s.logit_bias) <= max_logit_bias else ():
        field = f"logit_bias[{token}]"
        if token not in token_ids:
            yield FieldViolation(field, f"is no token of this model; ids are {token_ids}")
        elif token in seen:
            yield FieldViolation(field, "is given twice")
        seen.add(token)
        yield from LOGIT_BIAS.violations(field, bias)
    if s.seed is not None:
        yield from SEED.violations("seed", s.seed)
    if s.logprobs is not None:
        yield from Bound(0, max_logprobs).violations("logprobs", s.logprobs)
    yield from too_many("stop_token_ids", len(s.stop_token_ids), MAX_STOP_TOKENS, "ids")
    for i, token in enumerate(s.stop_token_ids[:MAX_STOP_TOKENS]):
        yield from token_ids.violations(f"stop_token_ids[{i}]", token)


def too_many(field: str, count: int, most: int, what: str) -> Iterator[FieldViolation]:
    """A list or map with more entries than are allowed."""
    if count > most:
        yield FieldViolation(field, f"has {count} {what}, at most {most} are allowed")


def text_violations(field: str, text: str, max_bytes: int) -> Iterator[FieldViolation]:
    """A text must not be empty, must be valid Unicode, and has a limit in UTF-8 bytes."""
    size = utf8_size(text)
    if size is None:
        yield FieldViolation(field, NOT_UNICODE)
    elif size == 0:
        yield FieldViolation(field, "is empty")
    else:
        yield from too_many(field, size, max_bytes, "bytes")


def utf8_size(text: str) -> int | None:
    """Bytes of ``text`` in UTF-8; None if it has lone surrogates and thus no UTF-8 form."""
    try:
        return len(text.encode("utf-8"))
    except UnicodeEncodeError:
        return None


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"
