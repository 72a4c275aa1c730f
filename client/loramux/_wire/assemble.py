"""Putting the chunks of a stream together again."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..types import AppliedAdapter, Choice, Chunk, Completion, TokenLogprob, Usage


@dataclass(slots=True)
class _Parts:
    texts: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: str | None = None


class Assembler:
    """Collects chunks; ``completion()`` is the answer as far as it has come."""

    def __init__(self) -> None:
        self._choices: dict[int, _Parts] = {}
        self._usage = Usage()
        self._adapters: tuple[AppliedAdapter, ...] = ()
        self._request_id = ""

    def add(self, chunk: Chunk) -> None:
        parts = self._choices.setdefault(chunk.index, _Parts())
        parts.texts.append(chunk.text)
        parts.token_ids += chunk.token_ids
        parts.logprobs += chunk.logprobs
        parts.finish_reason = chunk.finish_reason or parts.finish_reason
        self._usage = chunk.usage or self._usage
        self._adapters = chunk.adapters or self._adapters
        self._request_id = chunk.request_id or self._request_id

    def completion(self) -> Completion:
        choices = tuple(
            Choice(index, "".join(p.texts), tuple(p.token_ids), tuple(p.logprobs), p.finish_reason)
            for index, p in sorted(self._choices.items())
        )
        return Completion(choices or (Choice(0, ""),), self._usage, self._adapters, self._request_id)
