"""W3C trace context: which trace a call belongs to, and what a door tells of a call for its span."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from ..errors import Error

Attributes: TypeAlias = Mapping[str, str | int]
"""Of a span, by OpenTelemetry's names."""

MOST_STATE = 512
"""Characters of a ``tracestate`` that is passed on; a longer one is left out."""
_PARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-[ -~]*)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class TraceContext:
    """A span as others name it."""

    trace_id: str
    """32 hexadecimal digits."""
    span_id: str
    """16 hexadecimal digits."""
    sampled: bool
    """Whether the trace is recorded."""
    state: str = ""
    """``tracestate``: what tracing systems add for themselves. Not looked at, and as trusted as the caller."""

    @classmethod
    def parse(cls, parents: Sequence[str], states: Sequence[str] = ()) -> TraceContext | None:
        """The span that the headers ``traceparent`` and ``tracestate`` name; None for anything that is not W3C's form.

        Several ``traceparent`` are as good as none.
        """
        found = _PARENT.fullmatch(parents[0].strip(" \t")) if len(parents) == 1 and len(parents[0]) <= 512 else None
        if found is None:
            return None
        version, trace_id, span_id, flags, more = found.groups()
        if version == "ff" or (version == "00" and more) or not int(trace_id, 16) or not int(span_id, 16):
            return None
        state = ",".join(states)
        return cls(trace_id, span_id, bool(int(flags, 16) & 1), state if len(state) <= MOST_STATE else "")

    @property
    def traceparent(self) -> str:
        """The header that names this span as a parent."""
        return f"00-{self.trace_id}-{self.span_id}-{int(self.sampled):02x}"


def _nothing(code: str, error: Error | None) -> Attributes:
    return {}


@dataclass(frozen=True, slots=True)
class Arrival:
    """What a door tells of a call for its span."""

    name: str = ""
    attributes: Attributes = field(default_factory=dict)
    answered: Callable[[str, Error | None], Attributes] = _nothing
    """What the door tells of its answer to a call that ended with a code: ``OK``, or the name of a ``Code``."""


UNSEEN = Arrival()
"""Of a call that no door saw arrive."""
