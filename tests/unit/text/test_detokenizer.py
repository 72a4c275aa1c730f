"""Incremental decoding: in sum the decoding of the whole, and no piece ends in half a character."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loramux_server.text import TextTokenizer
from tests.examples import examples

KINDS = ["smollm", "byte-level", "sentencepiece", "sentencepiece-legacy"]
texts = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=40),
    st.lists(
        st.sampled_from(["🙂", "👩‍👩‍👧", "🇫🇷", "東京", "café", " ", "\n", "Paris", "\ufffd", "<s>"]), max_size=12
    ).map("".join),
)


def _cut(ids: list[int], sizes: list[int]) -> list[list[int]]:
    pieces = []
    for size in sizes:
        pieces.append(ids[:size])
        ids = ids[size:]
    return [*pieces, ids]


@pytest.mark.parametrize("kind", KINDS)
def test_the_sum_is_the_whole(kind: str, tokenizer_folders: dict[str, Path]) -> None:
    tokenizer = TextTokenizer.load(tokenizer_folders[kind])
    random_ids = st.lists(st.integers(-1, tokenizer.vocab_size + 2), max_size=30)
    byte_ids = st.lists(st.sampled_from(_byte_like(tokenizer)), max_size=30)

    @examples(200)
    @given(st.one_of(texts.map(tokenizer.encode), random_ids, byte_ids), st.lists(st.integers(0, 3), max_size=30))
    def equal(ids: list[int], sizes: list[int]) -> None:
        detokenizer = tokenizer.detokenizer()
        pieces = [detokenizer.push(piece) for piece in _cut(ids, sizes)]
        pieces.append(detokenizer.finish())
        assert "".join(pieces) == tokenizer.decode(ids)

    equal()


def _byte_like(tokenizer: TextTokenizer) -> list[int]:
    """Tokens that are part of a character, and one that is a whole word."""
    parts = [id for id in range(tokenizer.vocab_size) if len(raw := tokenizer.token_bytes(id)) == 1 and raw[0] >= 0x80]
    return [*parts, *tokenizer.encode_continuation("is")]


@pytest.mark.parametrize("kind", KINDS)
def test_no_piece_has_half_a_character(kind: str, tokenizer_folders: dict[str, Path]) -> None:
    tokenizer = TextTokenizer.load(tokenizer_folders[kind])

    @examples(100)
    @given(texts)
    def whole(text: str) -> None:
        detokenizer = tokenizer.detokenizer()
        pieces = [detokenizer.push([id]) for id in tokenizer.encode(text)]
        pieces.append(detokenizer.finish())
        # A vocabulary need not have every byte, so compare with what the whole can show.
        assert sum(piece.count("\ufffd") for piece in pieces) == tokenizer.decode(tokenizer.encode(text)).count(
            "\ufffd"
        )

    whole()


def test_a_character_comes_out_with_its_last_byte(smollm: TextTokenizer) -> None:
    ids = smollm.encode("🦜")
    assert len(ids) > 1
    detokenizer = smollm.detokenizer()
    assert [detokenizer.push([id]) for id in ids] == [""] * (len(ids) - 1) + ["🦜"]
    assert detokenizer.finish() == ""


def test_a_cut_off_character_is_marked_at_the_end(tokenizer_folders: dict[str, Path]) -> None:
    for kind in KINDS:
        tokenizer = TextTokenizer.load(tokenizer_folders[kind])
        ids = tokenizer.encode_continuation("a🦜")[:-1]
        detokenizer = tokenizer.detokenizer()
        pieces = [detokenizer.push([id]) for id in ids]
        assert "".join(pieces) == "a"
        assert detokenizer.finish() == tokenizer.decode(ids)[1:]
        assert "\ufffd" in tokenizer.decode(ids)


def test_words_come_out_with_their_token(tokenizer_folders: dict[str, Path]) -> None:
    for kind in KINDS:
        tokenizer = TextTokenizer.load(tokenizer_folders[kind])
        detokenizer = tokenizer.detokenizer()
        for id in tokenizer.encode("The capital of France"):
            assert detokenizer.push([id]) or id in tokenizer.special_ids


def test_the_work_per_token_does_not_grow(tokenizer_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = TextTokenizer.load(tokenizer_folders["sentencepiece"])
    decoded = 0
    decode = tokenizer._pieces.decode

    def counting(ids: list[int], *, skip_special_tokens: bool = True) -> str:
        nonlocal decoded
        decoded += len(ids)
        return decode(ids, skip_special_tokens=skip_special_tokens)

    monkeypatch.setattr(tokenizer._pieces, "decode", counting)
    ids = tokenizer.encode("The shop 🦜 is in 東京 street. " * 200)
    detokenizer = tokenizer.detokenizer()
    text = "".join([*(detokenizer.push([id]) for id in ids), detokenizer.finish()])
    assert len(text) > 4000
    assert decoded <= 4 * len(ids)
