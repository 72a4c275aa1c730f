"""However the engine cuts its tokens into events, the text is that of the whole, cut at the first stop string."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loramux_server.core.backend import TokenEvent
from loramux_server.core.types import FinishReason, TokenLogprob
from loramux_server.services.inference.choice import ChoiceDecoder
from loramux_server.text import StopMatcher, TextTokenizer
from tests.examples import examples
from tests.unit.text.text_models import sentencepiece_folder

texts = st.text(alphabet=st.sampled_from("ab STOPend🙂東京é\n"), max_size=40)
stops = st.lists(st.text(alphabet=st.sampled_from("abSTOP 🙂京"), min_size=1, max_size=4), max_size=3)
sizes = st.lists(st.integers(1, 5), min_size=1, max_size=40)


def whole(text: str, stop: list[str]) -> tuple[str, bool]:
    """The specification: cut at the stop string that is complete first, the longest of those that end together."""
    ends = [(at + len(s), at) for s in stop if (at := text.find(s)) >= 0]
    return (text[: min(ends)[1]], True) if ends else (text, False)


@examples(150)
@given(answer=texts, stop=stops, sizes=sizes)
def test_text_does_not_depend_on_how_tokens_come(
    text: TextTokenizer, answer: str, stop: list[str], sizes: list[int]
) -> None:
    ids = text.encode_continuation(answer)
    decoder = ChoiceDecoder(0, text.detokenizer(), StopMatcher(stop), frozenset())
    chunks = []
    at = 0
    for size in [*sizes, len(ids) + 1]:
        part = tuple(ids[at : at + size])
        at += size
        last = at >= len(ids)
        logprobs = tuple(TokenLogprob(id, -1.0) for id in part)
        chunks.append(
            decoder.push(TokenEvent("x", part, logprobs, finish_reason=FinishReason.LENGTH if last else None))
        )
        if decoder.finish_reason is not None:
            break
    wanted, stopped = whole(answer, stop)
    assert "".join(chunk.text for chunk in chunks) == wanted
    assert chunks[-1].finish_reason is (FinishReason.STOP if stopped else FinishReason.LENGTH)
    assert all(chunk.finish_reason is None for chunk in chunks[:-1])
    # Tokens are reported up to the one that completed the stop string, each with its log-probability.
    seen = [token for chunk in chunks for token in chunk.token_ids]
    assert seen == ids[: len(seen)]
    assert decoder.tokens == len(seen)
    assert [entry.token_id for chunk in chunks for entry in chunk.logprobs] == seen
    if not stopped:
        assert len(seen) == len(ids)
    else:
        assert whole(text.decode(seen), stop)[1]
        assert not whole(text.decode(seen[:-1]).rstrip("\ufffd"), stop)[1]


SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
parts = st.lists(
    st.one_of(st.sampled_from(SPECIAL), st.text(st.sampled_from("abSTOP🙂京\n"), min_size=1, max_size=4)), max_size=12
)
special_stops = st.lists(
    st.one_of(
        st.text(st.sampled_from("abSTOP🙂京\n"), min_size=1, max_size=3),
        st.tuples(st.text("ab🙂\n", max_size=2), st.sampled_from(SPECIAL), st.text("ab🙂\n", max_size=2)).map("".join),
        st.tuples(st.sampled_from(SPECIAL), st.sampled_from(SPECIAL)).map("".join),
        st.sampled_from(["|", "<|im", "start|>"]),
    ),
    max_size=3,
)


def cut(text: TextTokenizer, ids: list[int], stop: list[str], min_tokens: int) -> tuple[str, bool]:
    """The specification: the first place, after the minimum, at which a stop string ends in one of the two readings."""
    detokenizer = text.detokenizer()
    units: list[tuple[str, bool, int]] = []  # (a character or a hidden piece, hidden, number of its token)
    for number, id in enumerate(ids, 1):
        special = id in text.special_ids
        piece = text.decode([id], skip_special_tokens=False) if special else detokenizer.push([id])
        units += [(piece, True, number)] if special else [(char, False, number) for char in piece]
    units += [(char, False, len(ids)) for char in detokenizer.finish()]
    for end in range(1, len(units) + 1):
        starts: dict[int, int] = {}
        for stop_text in stop:
            for full in (False, True):
                if units[end - 1][2] <= min_tokens or (units[end - 1][1] and not full):
                    continue
                found, start = "", end
                while start and len(found) < len(stop_text):
                    start -= 1
                    found = ("" if units[start][1] and not full else units[start][0]) + found
                if found == stop_text:
                    starts[len(stop_text)] = start
        if starts:
            return "".join(piece for piece, hidden, _ in units[: starts[max(starts)]] if not hidden), True
    return "".join(piece for piece, hidden, _ in units if not hidden), False


@examples(300)
@given(answer=parts, stop=special_stops, sizes=sizes, min_tokens=st.integers(0, 12), ended=st.booleans())
def test_field_07_stops_hold_special_tokens_and_begin_before_the_minimum(
    text: TextTokenizer, answer: list[str], stop: list[str], sizes: list[int], min_tokens: int, ended: bool
) -> None:
    ids = [id for part in answer for id in text.encode_continuation(part)]
    decoder = ChoiceDecoder(0, text.detokenizer(), StopMatcher(stop), frozenset([2]) if ended else (), min_tokens)
    if ended:  # the engine ends the choice with its end token, which it does not choose before
        ids = [id for id in ids if id != 2] + [2]
        min_tokens = decoder._min_tokens = min(min_tokens, len(ids) - 1)
    said = ""
    at = 0
    for size in [*sizes, len(ids) + 1]:
        last = at + size >= len(ids)
        finish = (FinishReason.STOP if ended else FinishReason.LENGTH) if last else None
        said += decoder.push(TokenEvent("x", tuple(ids[at : at + size]), finish_reason=finish)).text
        at += size
        if decoder.finish_reason is not None:
            break
    wanted, stopped = cut(text, ids, stop, min_tokens)
    assert said == wanted
    assert decoder.finish_reason is (FinishReason.STOP if stopped or ended else FinishReason.LENGTH)


def test_field_06_a_stop_matches_the_id_of_a_special_token(text: TextTokenizer) -> None:
    for stop, said in {
        "<|im_start|>": "nine \n",
        "\n<|im_start|>user": "nine ",
        "nine \n<|im_start|>": "",
        "<|im_start|>user": "nine \n",
        "start": "nine \nuser five",
        "<|": "nine \nuser five",
        "\nuser": "nine ",
    }.items():
        ids = [*text.encode_continuation("nine \n"), 1, *text.encode_continuation("user five")]
        decoder = ChoiceDecoder(0, text.detokenizer(), StopMatcher([stop]), frozenset())
        chunks = []
        for id in ids:
            chunks.append(decoder.push(TokenEvent("x", (id,))))
            if decoder.finish_reason is not None:
                break
        else:
            chunks.append(decoder.push(TokenEvent("x", finish_reason=FinishReason.LENGTH)))
        assert "".join(chunk.text for chunk in chunks) == said


def test_field_06_a_special_token_in_between_parts_a_stop_that_holds_another(text: TextTokenizer) -> None:
    (a,), (b,) = text.encode_continuation("a"), text.encode_continuation("b")
    decoder = ChoiceDecoder(0, text.detokenizer(), StopMatcher(["ab<|im_end|>"]), frozenset())
    assert decoder.push(TokenEvent("x", (a, 1, b, 2, 0))).finish_reason is None
    assert decoder.push(TokenEvent("x", (a, b, 2))).finish_reason is FinishReason.STOP


def test_field_06_a_stop_before_a_special_token_may_end_in_byte_tokens(tmp_path: Path) -> None:
    text = TextTokenizer.load(sentencepiece_folder(tmp_path))
    special = text.encode_continuation("<|im_start|>")
    decoder = ChoiceDecoder(0, text.detokenizer(), StopMatcher(["🙂<|im_start|>"]), frozenset())
    chunk = decoder.push(TokenEvent("x", (*text.encode_continuation("a🙂"), *special, *special)))
    assert (chunk.text, chunk.finish_reason) == ("a", FinishReason.STOP)


@pytest.fixture(scope="module", params=["byte-level", "sentencepiece", "sentencepiece-legacy"])
def spelling(
    request: pytest.FixtureRequest, text: TextTokenizer, tmp_path_factory: pytest.TempPathFactory
) -> TextTokenizer:
    if request.param == "byte-level":
        return text
    folder = sentencepiece_folder(tmp_path_factory.mktemp("tokenizer"), legacy="legacy" in request.param)
    return TextTokenizer.load(folder)


def test_field_36_the_bytes_of_tokens_join_to_the_text(spelling: TextTokenizer) -> None:
    tokens = st.lists(st.integers(0, spelling.vocab_size - 1), max_size=8)
    written = st.lists(
        st.sampled_from([" ", "a", " b", "🙂", "東京", "é", "\n", "<s>", "<|im_start|>", "▁"]), max_size=6
    ).map(lambda parts: [id for part in parts for id in spelling.encode_continuation(part)])

    @examples(200)
    @given(st.lists(st.one_of(tokens, written), max_size=4), st.booleans())
    def join(parts: list[list[int]], exact: bool) -> None:
        ids = [id for part in parts for id in part]
        decoder = ChoiceDecoder(0, spelling.detokenizer(exact=exact), StopMatcher(()), frozenset())
        text, spelt = "", b""
        for at, id in enumerate(ids):
            entry = TokenLogprob(id, -1.0, ((id, -1.0), (0, -2.0)))
            finish = FinishReason.LENGTH if at == len(ids) - 1 else None
            chunk = decoder.push(TokenEvent("x", (id,), (entry,), finish_reason=finish))
            (told,) = chunk.logprobs
            assert len(told.token_bytes) == 3
            assert told.token_bytes[1] == told.token_bytes[0]
            text, spelt = text + chunk.text, spelt + told.token_bytes[0]
        assert spelt.decode("utf-8", "replace") == text or "\ufffd" in text
        if "\ufffd" not in text:
            assert spelt == text.encode()

    join()


def test_field_36_the_bytes_of_a_continuation_are_its_text(spelling: TextTokenizer) -> None:
    pieces = [" ", "a", " b", "🙂", "東京", "é", "\n", "x"]
    after_special = spelling.encode_continuation("<|im_start|>a")[1:]
    if [spelling.token_bytes(id) for id in after_special] == [b"a"]:
        pieces.append("<|im_start|>")  # old SentencePiece models put a space of their own behind a special token

    @examples(100)
    @given(st.lists(st.sampled_from(pieces), min_size=1).map("".join))
    def join(continuation: str) -> None:
        ids = spelling.encode_continuation(continuation)
        assert b"".join(map(spelling.token_bytes, ids)) == continuation.encode()

    join()
