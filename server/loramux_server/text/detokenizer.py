"""Text from token ids as they come: never half a character, and in sum exactly the decoding of the whole.

Two kinds of decoders exist in practice. Byte-level ones (GPT-2, Llama 3, Qwen, SmolLM2) map each token to bytes:
there an incremental UTF-8 decoder is exact. All others (SentencePiece with byte fallback: Llama 2, Mistral,
Gemma) decode token by token, except that a run of byte tokens is read as one, so a run is held until it ends.
Either way a token is looked at a bounded number of times.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Sequence

from tokenizers import Tokenizer

_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")


class Pieces:
    """What decoding needs to know about a tokenizer; shared by all generations. Safe from several threads."""

    def __init__(self, tokenizer: Tokenizer, special_ids: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self._size: int = tokenizer.get_vocab_size(with_added_tokens=True)
        self._bytes: dict[int, bytes] = {}
        self.special_ids = special_ids
        self.byte_level = _is_byte_level(tokenizer)

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Decode all of ``ids`` at once."""
        known = [id for id in ids if self.known(id)]
        return str(self._tokenizer.decode(known, skip_special_tokens=skip_special_tokens))

    def known(self, id: int) -> bool:
        return 0 <= id < self._size

    def spelling(self, id: int) -> str | None:
        """How the vocabulary writes a token; None outside it."""
        return self._tokenizer.id_to_token(id) if self.known(id) else None

    def is_byte(self, id: int) -> bool:
        """Whether a token is one byte of a run that is decoded as one."""
        return _BYTE_TOKEN.fullmatch(self.spelling(id) or "") is not None

    def token_bytes(self, id: int) -> bytes:
        """The bytes that one token stands for; cached."""
        found = self._bytes.get(id)
        if found is None:
            token = self.spelling(id)
            if token is None:
                found = b""
            elif self.byte_level:
                found = _unmap(token)
            elif _BYTE_TOKEN.fullmatch(token):
                found = bytes([int(token[3:5], 16)])
            else:
                found = token.replace("▁", " ").encode()
            self._bytes[id] = found
        return found

    def first_bytes(self, id: int) -> bytes:
        """As ``token_bytes`` at the start of a text, where some decoders take a space away."""
        found = self.token_bytes(id)
        taken = found[:1] == b" " and len(self.decode([id, id]).encode()) < 2 * len(found)
        return found[1:] if taken else found


class Detokenizer:
    """Decodes one generation. ``push`` gives the text that is certain, ``finish`` the rest.

    ``exact``: the text is the bytes of all tokens, as grammars count them. Otherwise a SentencePiece decoder takes
    the space away that stands before the first word.
    """

    def __init__(self, pieces: Pieces, *, exact: bool = False) -> None:
        self._pieces = pieces
        self._by_bytes = pieces.byte_level or exact
        self._begun = False
        """Whether a token came that has text."""
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._context: list[int] = []
        """The ids of the last piece that went out: words are joined differently at the start of a text."""
        self._context_text = ""
        self._held: list[int] = []

    def push(self, ids: Sequence[int]) -> str:
        """Take the next tokens; returns the text that nothing to come can change. Special tokens are left out."""
        pieces = self._pieces
        self._begun = self._begun or any(pieces.token_bytes(id) for id in ids if id not in pieces.special_ids)
        if self._by_bytes:
            return self._utf8.decode(b"".join(pieces.token_bytes(id) for id in ids if id not in pieces.special_ids))
        self._held += [id for id in ids if pieces.known(id) and id not in pieces.special_ids]
        if not self._held or pieces.is_byte(self._held[-1]):
            return ""
        return self._release()

    def finish(self) -> str:
        """No more tokens will come: the text still held back (U+FFFD for a character that was cut off)."""
        if self._by_bytes:
            return self._utf8.decode(b"", final=True)
        return self._release() if self._held else ""

    def settle(self) -> str:
        """Text that is held back although its characters are whole, as if the run of byte tokens ended here."""
        return self._release() if self._held and "\ufffd" not in self._pieces.decode(self._held) else ""

    def token_bytes(self, id: int) -> bytes:
        """What a token would add to the text if it came next; nothing for a special token."""
        pieces = self._pieces
        if id in pieces.special_ids:
            return b""
        added = pieces.token_bytes(id)
        return pieces.first_bytes(id) if added[:1] == b" " and not (self._by_bytes or self._begun) else added

    def special_text(self, id: int) -> str | None:
        """How a special token is written; None for any other token."""
        return self._pieces.spelling(id) if id in self._pieces.special_ids else None

    def _release(self) -> str:
        whole = self._pieces.decode(self._context + self._held)
        text = whole[len(self._context_text) :]
        self._context, self._held = self._held, []
        self._context_text = self._pieces.decode(self._context)
        return text


def _is_byte_level(tokenizer: Tokenizer) -> bool:
    decoder = tokenizer.decoder
    if decoder is None:
        return False
    state = json.loads(decoder.__getstate__())
    parts = state["decoders"] if state["type"] == "Sequence" else [state]
    return [part["type"] for part in parts] == ["ByteLevel"]


def _byte_alphabet() -> dict[str, int]:
    """Character -> byte of byte-level BPE: printable bytes stand for themselves, the rest are shifted above 255."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(256) if byte not in set(printable)]
    return table | {chr(256 + index): byte for index, byte in enumerate(others)}


_ALPHABET = _byte_alphabet()


def _unmap(token: str) -> bytes:
    """Bytes of a byte-level token; one with a character outside the alphabet stands for itself."""
    try:
        return bytes([_ALPHABET[char] for char in token])
    except KeyError:
        return token.encode()
