"""One choice of an answer: from the engine's token events to text that may go out."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from ...core.backend import TokenEvent
from ...core.types import Chunk, FinishReason, TokenLogprob
from ...text import Detokenizer, StopMatcher


class ChoiceDecoder:
    """Turns the token events of one choice into chunks, and ends the choice where a stop string is complete.

    Text never holds half a character or any part of a stop string. The token that ended the choice (in ``end_ids``)
    is reported but has no text. No stop string ends within the first ``min_tokens`` tokens.
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
        self._ended_by = ""

    def push(self, event: TokenEvent) -> Chunk:
        """The chunk that an event makes (perhaps without text). Must not be called once the choice has ended."""
        self.cached_tokens = max(self.cached_tokens, event.cached_tokens)
        text: list[str] = []
        logprobs: list[TokenLogprob] = []
        used = 0
        ended_by: int | None = None
        for token in event.token_ids:
            if used < len(event.logprobs):
                logprobs.append(self._spelt(event.logprobs[used]))
            used += 1
            self.tokens += 1
            if used == len(event.token_ids) and event.finish_reason is FinishReason.STOP and token in self._end_ids:
                ended_by = token
            elif (special := self._detokenizer.special_text(token)) is not None:
                self._take(self._detokenizer.settle(), text)
                self._take(special, text, hidden=True)
            else:
                self._take(self._detokenizer.push((token,)), text)
            if self.finish_reason is not None:
                break
        if self.finish_reason is None and event.finish_reason is not None:
            self._flush(text, ended_by)
            self.finish_reason = self.finish_reason or event.finish_reason
        return Chunk(
            index=self._index,
            text="".join(text),
            token_ids=event.token_ids[:used],
            logprobs=tuple(logprobs),
            finish_reason=self.finish_reason,
            stop=self._ended_by,
        )

    def _take(self, piece: str, text: list[str], *, hidden: bool = False) -> None:
        """Add what may go out of ``piece`` to ``text``, and end the choice if a stop string is complete."""
        result = self._stop.push(piece, hidden=hidden, counts=self.tokens > self._min_tokens)
        text.append(result.text)
        if result.stop is not None:
            self.finish_reason, self._ended_by = FinishReason.STOP, result.stop

    def _flush(self, text: list[str], ended_by: int | None) -> None:
        """Add what is still held back; a stop string may yet be complete, perhaps with the token that ended it all."""
        self._take(self._detokenizer.finish(), text)
        if ended_by is not None and (special := self._detokenizer.special_text(ended_by)) is not None:
            self._take(special, text, hidden=True)
        text.append(self._stop.finish())

    def _spelt(self, entry: TokenLogprob) -> TokenLogprob:
        """A token's log-probabilities with the bytes that it and each of the best would add to the text here."""
        ids = (entry.token_id, *(id for id, _ in entry.top))
        return replace(entry, token_bytes=tuple(map(self._detokenizer.token_bytes, ids)))
