"""What a generation, a score or a tokenisation takes and answers."""

from __future__ import annotations

from dataclasses import dataclass, field

from ...core.principal import Principal
from ...core.types import FinishReason, Message, StackEntry, StackItem, TokenLogprob, Usage


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


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """Score ``continuation`` after a prompt or messages (exactly one of them) under a stack."""

    continuation: str
    prompt: str | None = None
    messages: tuple[Message, ...] = ()
    adapters: tuple[StackItem, ...] = ()
    principal: Principal = field(kw_only=True)
    request_id: str = ""
    deadline: float | None = None
    """Seconds on the monotonic clock."""
    continue_final_message: bool = False
    """Score what goes on writing the last message, instead of a new turn."""
    tools: str = ""
    chat_template_kwargs: str = ""


@dataclass(frozen=True, slots=True)
class TokenizeRequest:
    """Show the tokens of a prompt or messages (exactly one of them)."""

    prompt: str | None = None
    messages: tuple[Message, ...] = ()
    continue_final_message: bool = False
    tools: str = ""
    chat_template_kwargs: str = ""
    deadline: float | None = None
    """Seconds on the monotonic clock."""


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


@dataclass(frozen=True, slots=True)
class Tokens:
    """Token ids of a text as the model would see it, the vocabulary's spelling of each, and the text itself."""

    ids: tuple[int, ...]
    pieces: tuple[str, ...]
    text: str
    """The prompt, or the conversation after its template."""
    token_bytes: tuple[bytes, ...] = ()
    """The bytes that each token stands for."""
