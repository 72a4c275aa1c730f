"""Where the turns of a conversation begin in its rendering, found while the template runs once.

A template sees the messages through :class:`Turns`, which notes how much had been written when each message was taken
and whether the template learned anything of messages that it had not come to yet. If it did not, a conversation that
ends earlier is rendered the same up to there: the rendering of every beginning is a beginning of the whole one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

Message = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class TurnTexts:
    """A conversation as a template writes it, cut where each message begins.

    The rendering of the first n messages is ``"".join(turns[:n])`` and ``ask`` with the generation prompt, or ``end``
    without.
    """

    turns: tuple[str, ...]
    ask: str
    end: str


class Turns(Sequence[Message]):
    """The messages of one rendering. ``written``: characters of it so far, kept up to date by whoever collects them.

    No list on purpose: what is not foreseen here fails or counts as looking ahead.
    """

    def __init__(self, messages: Sequence[Message]) -> None:
        self._messages = messages
        self.written = 0
        self.looked_ahead = False
        self.starts = [0]
        """How much was written when each message was taken."""
        self.end: int | None = None
        """How much was written when there were no more messages."""
        self._begun = False

    def known(self, index: int) -> bool:
        """Whether the template may have message ``index`` without looking ahead."""
        return self.end is None and 0 <= index < len(self.starts)

    def ahead(self) -> None:
        """Note that the template looked ahead."""
        self.looked_ahead = True

    def from_message(self, first: int) -> Iterator[Message]:
        """The messages from ``first`` on, each noted as it is taken. One pass over them is all that is foreseen."""
        if self._begun or first > 1:
            self.ahead()
        self._begun = True
        for index in range(first, len(self._messages)):
            if index:
                self.starts.append(self.written)
            yield self._messages[index]
        self.end = self.written

    @overload
    def __getitem__(self, index: int) -> Message: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Message]: ...
    def __getitem__(self, index: int | slice) -> Message | Sequence[Message]:
        return _item(self, 0, index)

    def at(self, index: int | slice) -> Any:
        """Messages by their place in the whole conversation."""
        return self._messages[index]

    def __iter__(self) -> Iterator[Message]:
        return self.from_message(0)

    def __len__(self) -> int:
        self.ahead()
        return len(self._messages)

    def __bool__(self) -> bool:
        return True


class _Rest(Sequence[Message]):
    """The messages without the first one, as ``messages[1:]`` gives them."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns

    @overload
    def __getitem__(self, index: int) -> Message: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Message]: ...
    def __getitem__(self, index: int | slice) -> Message | Sequence[Message]:
        return _item(self.turns, 1, index)

    def __iter__(self) -> Iterator[Message]:
        return self.turns.from_message(1)

    def __len__(self) -> int:
        return len(self.turns) - 1


def turns_of(value: object) -> Turns | None:
    """The conversation that a value of a template is, or is a part of; None: neither."""
    return value.turns if isinstance(value, _Rest) else value if isinstance(value, Turns) else None


def _item(turns: Turns, first: int, index: int | slice) -> Any:
    if isinstance(index, slice):
        if not first and index == slice(1, None, None) and turns.end is None:
            return _Rest(turns)
        turns.ahead()
        return list(turns.at(slice(first, None)))[index]
    if index < 0 or not turns.known(first + index):
        turns.ahead()
        if index < 0:
            return turns.at(index)
    return turns.at(first + index)
