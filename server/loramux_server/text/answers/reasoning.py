"""The thoughts of an answer: what a model writes between think marks before it answers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .marks import begun

OPEN, CLOSE = "<think>", "</think>"


@dataclass(frozen=True, slots=True)
class Thought:
    """A piece of what the model thinks."""

    text: str


def thinks(literals: str) -> bool:
    """Whether a base's chat template knows think marks."""
    return CLOSE in literals


class ReasoningReader:
    """Takes an answer's text piece by piece; gives thoughts and text, the marks and the space around them left out.

    ``opened``: the prompt ends with the opening mark, so the answer begins with thoughts.
    """

    def __init__(self, opened: bool = False) -> None:
        self._inside = opened
        self._over = False
        self._held = ""
        self._begun = False  # some text of the present part was given

    def push(self, text: str) -> Iterator[str | Thought]:
        """What the text adds."""
        self._held += text
        if not self._inside and not self._over:
            start = self._held.lstrip()
            if len(start) < len(OPEN) and OPEN.startswith(start):
                return
            if start.startswith(OPEN):
                self._inside, self._held = True, start[len(OPEN) :]
            else:
                self._over = self._begun = True
        if self._inside:
            thought, mark, rest = self._held.partition(CLOSE)
            if mark:
                yield from self._give(thought.rstrip())
                self._inside, self._over, self._begun, self._held = False, True, False, rest
            else:
                keep = _undecided(self._held)
                thought, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
                yield from self._give(thought)
                return
        text, self._held = self._held, ""
        yield from self._give(text)

    def finish(self) -> Iterator[str | Thought]:
        """What was held when the answer ended."""
        text, self._held = self._held, ""
        yield from self._give(text)

    def _give(self, text: str) -> Iterator[str | Thought]:
        if not self._begun:
            text = text.lstrip()
        if text:
            self._begun = True
            yield Thought(text) if self._inside else text


def _undecided(text: str) -> int:
    """Characters at the end of the text that may be the beginning of the closing mark, or space before it."""
    mark = begun(text, CLOSE)
    before = text[: len(text) - mark]
    return mark + len(before) - len(before.rstrip())
