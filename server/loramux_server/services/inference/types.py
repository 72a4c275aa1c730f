"""What a generation, a score, a tokenisation or an embedding takes and answers."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

from ...core.callers.principal import Principal
from ...core.types import FinishReason, Message, Pooling, SamplingParams, StackEntry, StackItem, TokenLogprob, Usage
from ...text.answers.forced_calls import MODEL_CHOOSES, ToolChoice


@dataclass(frozen=True, slots=True)
class Choice:
    """One whole answer of a request."""

    index: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...]
    finish_reason: FinishReason


@dataclass(frozen=True, slots=True)
class Completion:
    """All answers of a request, in order of index, what they cost and which versions made them."""

    id: str
    choices: tuple[Choice, ...]
    usage: Usage
    adapters: tuple[StackEntry, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What an answer follows: exactly one of ``prompt`` and ``messages``, and what the chat template is given."""

    prompt: str | None = None
    messages: tuple[Message, ...] = ()
    tools: str = ""
    """Tools that the chat template shows: a JSON list as text; empty: none."""
    chat_template_kwargs: str = ""
    """Further arguments of the chat template: a JSON object as text; empty: none."""
    continue_final_message: bool = False
    """Go on with the last message instead of opening an assistant's turn."""
    deadline: float | None = None
    """Seconds on the monotonic clock after which the answer is of no use."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateRequest(Asked):
    """A generation as a door hands it over, before any check."""

    principal: Principal
    request_id: str = ""
    adapters: tuple[StackItem, ...] = ()
    sampling: SamplingParams = SamplingParams()
    stop: tuple[str, ...] = ()
    n: int = 1
    response_format: dict[str, Any] | None = None
    """``{"type": kind, kind: value}``; see ``text.response_format``."""
    tool_choice: ToolChoice = MODEL_CHOOSES
    """Calls that are required shape the answer in place of ``response_format``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreRequest(Asked):
    """Score ``continuation`` after what is asked, under a stack."""

    principal: Principal
    request_id: str = ""
    adapters: tuple[StackItem, ...] = ()
    continuation: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizeRequest(Asked):
    """Show the tokens of what is asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedRequest:
    """Texts, or their token ids, whose embeddings under a stack are wanted."""

    principal: Principal
    request_id: str = ""
    input: tuple[str | tuple[int, ...], ...]
    adapters: tuple[StackItem, ...] = ()
    pooling: Pooling = Pooling.MEAN
    normalize: bool = True
    """Scale each embedding to length 1."""
    dimensions: int | None = None
    """Must be all that the base has."""
    deadline: float | None = None
    """Seconds on the monotonic clock after which the answer is of no use."""


@dataclass(frozen=True, slots=True)
class Embeddings:
    """An embedding for each input: ``dimensions`` float32, little-endian."""

    vectors: tuple[bytes, ...]
    dimensions: int
    prompt_tokens: int
    adapters: tuple[StackEntry, ...]

    def values(self, index: int) -> tuple[float, ...]:
        """The numbers of one embedding."""
        return struct.unpack(f"<{len(self.vectors[index]) // 4}f", self.vectors[index])


@dataclass(frozen=True, slots=True)
class Score:
    """One entry per continuation token: its id, text, natural-log probability, and whether it was the likeliest."""

    token_ids: tuple[int, ...]
    tokens: tuple[str, ...]
    logprobs: tuple[float, ...]
    greedy: tuple[bool, ...]
    prompt_tokens: int
    adapters: tuple[StackEntry, ...]
    token_bytes: tuple[bytes, ...] = ()
    """UTF-8 of each token; joined they are the continuation."""
    cached_tokens: int = 0
    """Those of the prompt that the prefix cache gave."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """Token ids of a text as the model would see it, the vocabulary's spelling of each, and the text itself."""

    ids: tuple[int, ...]
    pieces: tuple[str, ...]
    text: str
    """The prompt, or the conversation after its template."""
    token_bytes: tuple[bytes, ...] = ()
    """The bytes that each token stands for."""
