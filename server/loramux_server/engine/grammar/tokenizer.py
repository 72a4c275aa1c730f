"""The base's tokenizer as llguidance sees it: its tokens have the bytes that an answer's text is made of.

Left to itself, llguidance has the library's tokenizer spell what a grammar demands. That makes special tokens of
their text, which a grammar then cannot go on with, and which no answer shows.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ...core.errors import Error
from ...text.tokenizer import TextTokenizer

if TYPE_CHECKING:
    from llguidance import LLTokenizer


def grammar_tokenizer(folder: Path, eos: tuple[int, ...]) -> LLTokenizer:
    """Read a tokenizer folder; ``eos`` are the tokens that end an answer. Raises what TextTokenizer.load raises."""
    from llguidance import LLTokenizer, TokenizerWrapper

    spelling = _Spelling(TextTokenizer.load(folder), eos)
    return LLTokenizer(TokenizerWrapper(spelling), eos_token=list(eos) or [spelling.eos_token_id])


class _Spelling:
    """What llguidance asks of a tokenizer."""

    bos_token_id = None

    def __init__(self, text: TextTokenizer, eos: tuple[int, ...]) -> None:
        self._text = text
        special = text.special_ids | set(eos)
        size = max([text.vocab_size, *(id + 1 for id in eos)])
        self.tokens = [
            (text.spelling(id) or "").encode() if id in special else text.token_bytes(id) for id in range(size)
        ]
        self.special_token_ids = sorted(special)
        if not eos:  # llguidance needs one: beyond the vocabulary, where no model will choose it
            self.tokens.append(b"")
        self.eos_token_id = eos[0] if eos else size
        # The first of several that read the same: bytes of their own come last in a vocabulary.
        self._ids = {token: id for id, token in reversed(list(enumerate(self.tokens))) if token and id not in special}
        self._longest = max(map(len, self._ids), default=0)

    def __call__(self, data: bytes) -> list[int]:
        """Ids of text in ordinary tokens, as the tokenizer cuts it; if that adds anything, the longest token each."""
        try:
            ids = self._text.encode_literal(data.decode())
        except (Error, UnicodeDecodeError):
            return self._cut(data)
        return ids if b"".join(self.tokens[id] for id in ids) == data else self._cut(data)

    def _cut(self, data: bytes) -> list[int]:
        ids: list[int] = []
        at = 0
        while at < len(data):
            ends = range(min(at + self._longest, len(data)), at, -1)
            end = next((end for end in ends if data[at:end] in self._ids), at)
            if end == at:
                break  # no token has this byte
            ids.append(self._ids[data[at:end]])
            at = end
        return ids
