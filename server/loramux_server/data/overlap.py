"""Held-out rows that are training rows: they show what was memorised, and nothing about other questions."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .expect import plain
from .fields import ChatRow, CompletionRow, TextRow
from .preference_pairs import PairRow
from .rows import Content

Asked = tuple[tuple[bytes, bytes], ...]
"""For each answer that a row trains: digests of its prompt (empty: none), and of the prompt with the answer.

A prompt without an answer has the digest of the prompt twice.
"""
MANY_ANSWERS = 4
"""A prompt that is trained with this many different answers is open: only a row with the same answer is a copy."""


@dataclass(frozen=True, slots=True)
class Overlap:
    """Which held-out rows, by line, are training rows."""

    rows: frozenset[int]
    """Prompt and answer are those of a training row."""
    prompts: frozenset[int]
    """Only the prompt is."""

    @property
    def lines(self) -> frozenset[int]:
        return self.rows | self.prompts


class TrainedAnswers:
    """The prompts of training rows, and the answers to each."""

    def __init__(self, rows: Iterable[Asked]) -> None:
        self._answers: dict[bytes, set[bytes]] = {}
        for asked in rows:
            for prompt, whole in asked:
                self._answers.setdefault(prompt, set()).add(whole)

    def is_open(self, prompt: bytes) -> bool:
        """Whether a prompt is empty, or has many answers."""
        return not prompt or len(self._answers.get(prompt, ())) >= MANY_ANSWERS

    def overlap(self, held_out: Iterable[tuple[int, Asked]]) -> Overlap:
        """Which held-out rows, given with their lines, are training rows. The last answer of each decides."""
        rows, prompts = set(), set()
        for line, asked in held_out:
            if not asked:
                continue
            prompt, whole = asked[-1]
            if whole in self._answers.get(prompt, ()):
                rows.add(line)
            elif prompt in self._answers and not self.is_open(prompt):
                prompts.add(line)
        return Overlap(frozenset(rows), frozenset(prompts - rows))


def asked_for(content: Content) -> Asked:
    """The answers that a row trains, each after its prompt; of a preference pair the chosen ones."""
    return tuple(_asked(content))


def _asked(content: Content) -> Iterator[tuple[bytes, bytes]]:
    match content:
        case TextRow(text):
            yield b"", _digest("text", text)
        case CompletionRow(prompt, ""):
            yield _digest("prompt", prompt), _digest("prompt", prompt)
        case CompletionRow(prompt, completion):
            yield _digest("prompt", prompt), _digest("prompt", prompt, completion)
        case PairRow(chosen):
            yield from _asked(chosen)
        case ChatRow(messages, trained, tools):
            state = hashlib.blake2b(json.dumps(tools, sort_keys=True).encode(), digest_size=16)
            for message, learned in zip(messages, trained, strict=True):
                before = state.copy()
                state.update(_spelt(message))
                if learned:
                    yield before.digest(), state.digest()
            if not any(trained):
                yield state.digest(), state.digest()


def _spelt(message: Mapping[str, Any]) -> bytes:
    """A message without differences of white space and Unicode spelling."""
    said = {key: plain(value) if isinstance(value, str) else value for key, value in message.items()}
    return json.dumps(said, sort_keys=True).encode()


def _digest(*parts: str) -> bytes:
    return hashlib.blake2b(json.dumps([plain(part) for part in parts]).encode(), digest_size=16).digest()
