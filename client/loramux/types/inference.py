"""Answers, scores and tokens."""

from __future__ import annotations

import builtins
from dataclasses import dataclass


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
class AppliedAdapter:
    """An adapter version that answered, and its weight."""

    name: str
    version: int
    digest: str
    weight: float

    @property
    def ref(self) -> str:
        """``name@version``."""
        return f"{self.name}@{self.version}"


@dataclass(frozen=True, slots=True)
class TopLogprob:
    """A token, its natural-log probability and its text; ``bytes`` as in :class:`TokenLogprob`."""

    token_id: int
    logprob: float
    token: str = ""
    bytes: builtins.bytes = b""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A chosen token, its natural-log probability, its text, and the best alternatives, best first.

    ``token`` shows U+FFFD where a token is only part of a character. ``bytes`` is what it adds to the UTF-8 of the
    answer's text (nothing for a special token): joined over an answer they are its text, if no stop text cut it.
    """

    token_id: int
    logprob: float
    token: str = ""
    top: tuple[TopLogprob, ...] = ()
    bytes: builtins.bytes = b""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of an answer.

    The last chunk of each choice has a ``finish_reason`` (``stop``, ``length``, ``cancelled``, ``error``), the last
    of all has ``usage``; the first and the last of all name the ``adapters``.
    """

    index: int = 0
    text: str = ""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: str | None = None
    usage: Usage | None = None
    adapters: tuple[AppliedAdapter, ...] = ()
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class Choice:
    """One whole answer."""

    index: int
    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: str | None = None


@dataclass(frozen=True, slots=True)
class Completion:
    """All answers to a request. ``text``, ``finish_reason``, ``token_ids`` and ``logprobs`` are the first one's."""

    choices: tuple[Choice, ...]
    usage: Usage = Usage()
    adapters: tuple[AppliedAdapter, ...] = ()
    request_id: str = ""

    @property
    def text(self) -> str:
        return self.choices[0].text

    @property
    def finish_reason(self) -> str | None:
        return self.choices[0].finish_reason

    @property
    def token_ids(self) -> tuple[int, ...]:
        return self.choices[0].token_ids

    @property
    def logprobs(self) -> tuple[TokenLogprob, ...]:
        return self.choices[0].logprobs


@dataclass(frozen=True, slots=True)
class Score:
    """One entry per token of the continuation: id, text, natural-log probability, whether it was the likeliest."""

    token_ids: tuple[int, ...]
    tokens: tuple[str, ...]
    logprobs: tuple[float, ...]
    greedy: tuple[bool, ...]
    usage: Usage = Usage()
    adapters: tuple[AppliedAdapter, ...] = ()
    bytes: tuple[builtins.bytes, ...] = ()
    """UTF-8 of each token; joined they are the continuation."""

    @property
    def total(self) -> float:
        """Natural-log probability of the whole continuation."""
        return sum(self.logprobs)


@dataclass(frozen=True, slots=True)
class Embeddings:
    """An embedding for each text, in their order; ``usage`` counts the tokens of all."""

    vectors: tuple[tuple[float, ...], ...]
    usage: Usage = Usage()
    adapters: tuple[AppliedAdapter, ...] = ()


@dataclass(frozen=True, slots=True)
class Tokens:
    """Token ids, the vocabulary's spelling of each, and the text that was tokenised."""

    token_ids: tuple[int, ...]
    tokens: tuple[str, ...]
    text: str
    bytes: tuple[builtins.bytes, ...] = ()
    """The bytes that each token stands for."""

    def __len__(self) -> int:
        return len(self.token_ids)
