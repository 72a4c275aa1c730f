"""The nouns: adapter versions, stacks, sampling, requests and what comes back."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
COMPUTED_WITH = (CONFIG_FILE, WEIGHTS_FILE)
"""The files of an adapter that decide what it computes. A model card may be lost without harm to answers."""
BASE_NAME = "base"
"""What the base alone is called where a stack has a name. No adapter may be published under it."""
_DIGEST = re.compile(r"[0-9a-f]{64}", re.ASCII)


def is_digest(text: str) -> bool:
    """Whether a text can name content: a SHA-256 in hexadecimal."""
    return _DIGEST.fullmatch(text) is not None


@dataclass(frozen=True, slots=True)
class AdapterVersion:
    """One immutable adapter version. ``digest`` names its content: who needs the files finds them by it."""

    name: str
    version: int
    digest: str
    rank: int

    @property
    def ref(self) -> str:
        """``name@version``."""
        return f"{self.name}@{self.version}"


@dataclass(frozen=True, slots=True)
class StackEntry:
    """An adapter version and the weight of its delta."""

    adapter: AdapterVersion
    weight: float = 1.0

    @property
    def text(self) -> str:
        """``acme@3:0.5``: version and weight, as log lines and spans have them."""
        return f"{self.adapter.ref}:{self.weight:g}"


@dataclass(frozen=True, slots=True)
class Stack:
    """The adapters of one request in order: the output is the base plus the weighted sum of their deltas.

    Frozen and hashable, by content (digests and weights). An empty stack is the base.
    """

    entries: tuple[StackEntry, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.entries)

    @property
    def key(self) -> tuple[tuple[str, float], ...]:
        """Ordered (digest, weight) pairs: all of a stack that decides what comes out."""
        return tuple((e.adapter.digest, e.weight) for e in self.entries)

    @property
    def rank(self) -> int:
        """Sum of ranks, the measure of what the stack costs."""
        return sum(e.adapter.rank for e in self.entries)


BASE = Stack()


def model_name(entries: Iterable[StackEntry]) -> str:
    """What answered, as the ``model`` of an answer: ``acme@3+json@1:0.5``, every adapter with its version."""
    return "+".join(entry.adapter.ref if entry.weight == 1 else entry.text for entry in entries) or BASE_NAME


class GrammarKind(StrEnum):
    """In which notation a grammar is written."""

    JSON_SCHEMA = "json_schema"
    REGEX = "regex"
    LARK = "lark"


@dataclass(frozen=True, slots=True)
class Grammar:
    """A shape that an answer is forced into. ``text`` comes from the caller and is not trusted."""

    kind: GrammarKind
    text: str = field(repr=False)
    origin: Literal["response_format", "tools"] = "response_format"
    """Field of the request that it was made from, for messages."""


class Pooling(StrEnum):
    """How the hidden states of a text become its embedding."""

    MEAN = "mean"
    """Their mean over all tokens."""
    LAST = "last"
    """That of the last token."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are chosen. ``temperature`` 0 is greedy; ``top_k`` 0 and ``min_p`` 0 are off; lengths in tokens."""

    max_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int | None = None
    logprobs: int | None = None
    """None: no log-probabilities; k: of the chosen token and of the k best."""
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    min_tokens: int = 0

    def end_ids(self, eos: Iterable[int], shaped: bool) -> frozenset[int]:
        """Tokens that end an answer, of which ``eos`` are the model's own.

        In a shape these alone do, whatever the caller says: they come only where the shape is complete.
        """
        if shaped:
            return frozenset(eos)
        return frozenset(self.stop_token_ids) | frozenset(() if self.ignore_eos else eos)


class FinishReason(StrEnum):
    """Why a generation ended."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Log-probability of the chosen token and of the best alternatives, best first."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    token_bytes: tuple[bytes, ...] = ()
    """What the chosen token, and each of ``top``, adds to the text's UTF-8; set once the place in a text is known."""


@dataclass(frozen=True, slots=True)
class Message:
    """One chat turn, as the caller wrote it. ``weight`` 0 keeps an assistant turn out of the training loss."""

    role: str
    content: str | tuple[Mapping[str, Any], ...] = ""
    """A text, or parts ``{"type": "text", "text": ...}``."""
    weight: float = 1.0
    tool_calls: str = ""
    """A JSON list as text; empty: none."""
    tool_call_id: str = ""
    name: str = ""

    @property
    def fields(self) -> dict[str, Any]:
        """The turn as a training row has it, without what is empty."""
        further = {"tool_calls": self.tool_calls, "tool_call_id": self.tool_call_id, "name": self.name}
        return {"role": self.role, "content": self.content, **{k: v for k, v in further.items() if v}}


@dataclass(frozen=True, slots=True)
class StackItem:
    """A stack entry as the caller wrote it: ``name`` or ``name@version``, and a weight."""

    adapter: str
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one request over all its choices."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of an answer. The last chunk of each choice has a ``finish_reason``; the last of all has ``usage``."""

    index: int = 0
    text: str = ""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    stop: str = ""
    """The stop string that ended the choice; empty: none did."""
    usage: Usage | None = None
    usage_so_far: Usage | None = None
    """What was counted up to the first chunk, which has it."""
    adapters: tuple[StackEntry, ...] = ()
    """The versions that answered, in the first chunk and the last."""
