"""Documents: which passages a text is cut into, and what is refused."""

from __future__ import annotations

import json

import pytest

from loramux_server.core.errors import Code, Error
from loramux_server.data import documents
from loramux_server.data.documents import MAX_PASSAGE, passages_of, read_passages


def lines(*rows: object) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


@pytest.mark.parametrize(
    ("text", "passages"),
    [
        ("", []),
        (" \n\t\n\u3000", []),
        ("one", ["one"]),
        ("one\ntwo\n\n \nthree\r\n\r\nfour", ["one\ntwo", "three", "four"]),
        ("# Mill\n\n## Hours\nFrom 6:40.\n\nUntil 18.\n## Miller\n\nOdo.", [
            "Mill", "Hours\nFrom 6:40.", "Hours\nUntil 18.", "Miller\nOdo.",
        ]),
        ("#tag and # sign\n####### seven", ["#tag and # sign\n####### seven"]),
        ("text\n# Last", ["text", "Last"]),
    ],
)  # fmt: skip
def test_a_paragraph_is_a_passage_under_its_heading(text: str, passages: list[str]) -> None:
    assert list(passages_of(text)) == passages


def test_a_long_paragraph_is_cut_after_sentences_then_between_words_then_anywhere() -> None:
    sentences = " ".join(f"Shop number {i} is in street {i}." for i in range(200))
    found = list(passages_of(sentences))
    assert len(found) > 1
    assert all(len(piece) <= MAX_PASSAGE and piece.endswith(".") for piece in found)
    assert " ".join(found) == sentences
    words = "word " * 1000
    found = list(passages_of(words))
    assert all(len(piece) <= MAX_PASSAGE for piece in found)
    assert " ".join(found).split() == words.split()
    endless = "x" * (10 * MAX_PASSAGE + 1)
    found = list(passages_of("# Title\n" + endless))
    assert all(piece.startswith("Title\n") for piece in found)
    assert "".join(piece.removeprefix("Title\n") for piece in found) == endless


@pytest.mark.timeout(20)
def test_one_paragraph_of_many_megabytes_takes_seconds() -> None:
    assert sum(map(len, passages_of("y" * (8 << 20)))) == 8 << 20


def test_passages_of_all_documents_each_once() -> None:
    data = lines({"text": "a\n\nb", "name": "one.md"}, {"text": ""}, {"text": "b\n\nc"})
    assert read_passages(data, "docs") == ["a", "b", "c"]
    assert read_passages(b'[{"text": "a"}, {"text": "b"}]', "docs") == ["a", "b"]


@pytest.mark.parametrize(
    ("data", "field", "words"),
    [
        (b"", "docs", "holds no text"),
        (lines({"text": " \n"}), "docs", "holds no text"),
        (lines({"text": "good"}, {"body": "a"}), "docs[line 2]", '"text"'),
        (lines({"text": 3}), "docs[line 1]", '"text"'),
        (lines("text"), "docs[line 1]", "not a JSON object"),
        (b'{"text": "\\ud800"}\n', "docs[line 1]", "not valid Unicode"),
        (b"\xff\xfe\x00", "docs[line 1]", ""),
        (b'{"text": "\xff"}\n', "docs[line 1]", "UTF-8"),
        (b"PK\x03\x04 a spreadsheet", "docs[line 1]", "zip"),
    ],
)
def test_what_is_no_document_is_refused_by_line(data: bytes, field: str, words: str) -> None:
    with pytest.raises(Error) as caught:
        read_passages(data, "docs")
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert caught.value.violations[0].field == field
    assert words in caught.value.message


def test_passages_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "MAX_PASSAGES", 3)
    assert len(read_passages(lines({"text": "a\n\nb\n\nc"}), "docs")) == 3
    with pytest.raises(Error, match="more than 3 passages"):
        read_passages(lines({"text": "a\n\nb\n\nc\n\nd"}), "docs")
