"""Documents to compare with: what of a folder is read, and what is refused before anything is sent."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from loramux import InvalidArgument
from loramux._wire import documents
from loramux._wire.documents import read_documents


def test_a_folder_of_text_markdown_and_json_lines(tmp_path: Path) -> None:
    """In order of names, folders in it included; other and hidden files are left alone."""
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "x.md").write_text("no")
    (tmp_path / ".hidden.md").write_text("no")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\0")
    (tmp_path / "b.MD").write_bytes("\ufeff# Straße\n".encode())
    (tmp_path / "a.txt").write_text("")
    (tmp_path / "deep" / "er" / "c.jsonl").write_text('{"text": "one", "more": 1}\n\n"two"\n')
    assert read_documents(tmp_path) == [
        {"text": "", "name": "a.txt"},
        {"text": "# Straße\n", "name": "b.MD"},
        {"text": "one", "name": "deep/er/c.jsonl:1"},
        {"text": "two", "name": "deep/er/c.jsonl:3"},
    ]
    assert read_documents(str(tmp_path / "b.MD")) == [{"text": "# Straße\n", "name": "b.MD"}]
    (tmp_path / "notes.rst").write_text("a file that is named is read whatever its ending")
    assert len(read_documents(tmp_path / "notes.rst")) == 1
    assert read_documents(["a", "b"]) == [{"text": "a"}, {"text": "b"}]


def link_out(folder: Path) -> None:
    outside = folder.parent / "secret.txt"
    outside.write_text("secret")
    (folder / "link.txt").symlink_to(outside)


def broken_link(folder: Path) -> None:
    (folder / "gone.md").symlink_to(folder / "nowhere.md")


HOSTILE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no documents": (lambda folder: (folder / "x.png").write_bytes(b"x"), "has no documents"),
    "binary": (lambda folder: (folder / "x.txt").write_bytes(b"a\0b"), "x.txt' is no text"),
    "latin 1": (lambda folder: (folder / "x.md").write_bytes(b"Stra\xdfe"), "x.md' is not valid UTF-8 at byte 5"),
    "utf-16": (lambda folder: (folder / "x.md").write_text("text", "utf-16"), "x.md' is no"),
    "not JSON": (lambda folder: (folder / "x.jsonl").write_text('{"text": "a"}\n{'), "x.jsonl' line 2 is no JSON"),
    "no text": (lambda folder: (folder / "x.jsonl").write_text('{"body": "a"}'), "x.jsonl' line 1 is no document"),
    "deep JSON": (lambda folder: (folder / "x.jsonl").write_text("[" * 100_000), "x.jsonl' line 1 is no JSON"),
    "a pipe": (lambda folder: os.mkfifo(folder / "x.txt"), "x.txt' is no file"),
    "a link out": (link_out, "link.txt' is a link that leads out of the folder"),
    "a broken link": (broken_link, "gone.md' is no file"),
}


@pytest.mark.timeout(30)
@pytest.mark.parametrize("kind", list(HOSTILE))
def test_what_is_no_document_is_refused(kind: str, tmp_path: Path) -> None:
    make, words = HOSTILE[kind]
    folder = tmp_path / "docs"
    folder.mkdir()
    make(folder)
    with pytest.raises(InvalidArgument) as caught:
        read_documents(folder)
    assert [violation.field for violation in caught.value.violations] == ["compare_documents"]
    assert words in str(caught.value)


def test_links_within_the_folder_are_read_and_loops_are_not_followed(tmp_path: Path) -> None:
    """As a mounted ConfigMap has them."""
    (tmp_path / "..data").mkdir()
    (tmp_path / "..data" / "a.md").write_text("a")
    (tmp_path / "a.md").symlink_to(Path("..data", "a.md"))
    (tmp_path / "loop").symlink_to(tmp_path)
    assert read_documents(tmp_path) == [{"text": "a", "name": "a.md"}]


def test_what_is_too_large_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    large = tmp_path / "large.txt"
    with large.open("wb") as file:
        file.truncate(100 << 20)
    monkeypatch.setattr(documents, "_text", None)
    for place in (tmp_path, large):
        with pytest.raises(InvalidArgument, match=r"has 104857600 bytes up to '.*large.txt'; at most 33554432"):
            read_documents(place)


def test_a_device_or_nothing_is_no_document(tmp_path: Path) -> None:
    for place in ("/dev/zero", tmp_path / "none"):
        with pytest.raises(InvalidArgument, match="is no file or folder"):
            read_documents(place)
    for wrong in ([], [3], 5, {"text": "a"}):
        with pytest.raises(InvalidArgument, match="compare_documents"):
            read_documents(wrong)  # type: ignore[arg-type]


def test_many_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "MAX_FILES", 2)
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text(name)
    with pytest.raises(InvalidArgument, match="more than 2 documents"):
        read_documents(tmp_path)
