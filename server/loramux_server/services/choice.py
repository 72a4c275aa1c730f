"""One choice of an answer: from the engine's token events to text that may go out."""

from __future__ import annotations

from collections.abc import Collection

from ..core.backend import TokenEvent
from ..core.types import Chunk, FinishReason
from ..text import Detokenizer, StopMatcher


class ChoiceDecoder:
    """Turns the token events of one choice into chunks, and ends the choice where a stop string is complete.

    Text never holds half a character or any part of a stop string. The token that ended the choice (in ``end_ids``)
    is reported but has no text. In the first ``min_tokens`` tokens no stop string is looked for.
    """

    def __init__(
        self, index: int, detokenizer: Detokenizer, stop: StopMatcher, end_ids: Collection[int], min_tokens: int = 0
    ) -> None:
        self._index = index
        self._detokenizer = detokenizer
        self._stop = stop
        self._end_ids = end_ids
        self._min_tokens = min_tokens
        self.tokens = 0
        """Tokens so far, those after a stop string not counted."""
        self.cached_tokens = 0
        self.finish_reason: FinishReason | None = None

    def push(self, event: TokenEvent) -> Chunk:
        """The chunk that an event makes (perhaps without text). Must not be called once the choice has ended."""
        self.cached_tokens = max(self.cached_tokens, event.cached_tokens)
        ended_by = event.token_ids[-1] if event.token_ids and event.finish_reason is FinishReason.STOP else None
        text: list[str] = []
        used = 0
        for token in event.token_ids:
            used += 1
            self.tokens += 1
            if used == len(event.token_ids) and ended_by in self._end_ids:
                break
            if self._take(self._detokenizer.push((token,)), text):
                break
        else:
            used = len(event.token_ids)
        if self.finish_reason is None and event.finish_reason is not None:
            self._flush(text)
            self.finish_reason = self.finish_reason or event.finish_reason
        return Chunk(
            index=self._index,
            text="".join(text),
            token_ids=event.token_ids[:used],
            logprobs=event.logprobs[:used],
            finish_reason=self.finish_reason,
        )

    def _take(self, piece: str, text: list[str]) -> bool:
        """Add what may go out of ``piece``; True if a stop string ended the choice."""
        if self.tokens <= self._min_tokens:
            text.append(piece)
            return False
        result = self._stop.push(piece)
        text.append(result.text)
        if result.stop is None:
            return False
        self.finish_reason = FinishReason.STOP
        return True

    def _flush(self, text: list[str]) -> None:
        if not self._take(self._detokenizer.finish(), text):
            text.append(self._stop.finish())
