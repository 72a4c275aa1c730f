"""Reads what can be checked out of the project's Markdown: fenced blocks, shell commands, links."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[3]
SHELLS = {"bash", "sh", "console", "shell"}
_FENCE = re.compile(r"^( *)(```+)(\w*)[^\n]*\n(.*?)^\1\2 *$", re.MULTILINE | re.DOTALL)
_MARK = re.compile(r"<!-- ((?:test|file): [\w./-]+) -->\s*\Z")
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)[^)]*\)")
_HEADING = re.compile(r"^#+ +(.*?) *$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block and where its text starts.

    ``mark`` is the comment before it: ``test: e2e`` has the block run against a real server, ``file: NAME`` has its
    text written to that file first, for the blocks that are run, ``test: openssl`` makes certificates.
    """

    path: Path
    line: int
    language: str
    text: str
    mark: str

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line}"


def pages() -> list[Path]:
    """Every Markdown page that people read: at the root, under docs/ and beside the examples and adapters."""
    folders = ("docs", "examples", "adapters", "benchmarks")
    found = [*ROOT.glob("*.md"), *(page for folder in folders for page in (ROOT / folder).rglob("*.md"))]
    return sorted(page for page in found if page.is_file())


def blocks(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page, in order."""
    text = page.read_text()
    for match in _FENCE.finditer(text):
        before = text[: match.start()]
        mark = _MARK.search(before)
        indent = len(match[1])
        body = "\n".join(line[indent:] for line in match[4].split("\n"))
        yield Block(page, before.count("\n") + 2, match[3].lower(), body, mark[1] if mark else "")


def every_block() -> list[Block]:
    """The fenced blocks of all pages."""
    return [block for page in pages() for block in blocks(page)]


def commands(block: Block) -> Iterator[list[str]]:
    """The commands of a shell block as words: prompts, comments, variables in front and what follows a pipe removed.

    In a ``console`` block only the lines with a ``$`` prompt are commands; the rest is output.
    """
    text = re.sub(r"\\\n\s*", " ", block.text)
    prompts = block.language == "console" or re.search(r"^\$ ", text, re.MULTILINE)
    for line in text.splitlines():
        if prompts and not line.startswith("$ "):
            continue
        lexer = shlex.shlex(line.removeprefix("$ "), posix=True, punctuation_chars="|&;<>")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if word.strip("|&;<>"):
                words.append(word)
                continue
            while words and re.fullmatch(r"[A-Z_][A-Z0-9_]*=.*", words[0]):
                words.pop(0)
            if words and not word.startswith((">", "<")):
                yield words
                words = []


def anchors(page: Path) -> set[str]:
    """The anchors that headings make, as code hosts make them."""
    text = _FENCE.sub("", page.read_text())
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in _HEADING.findall(text))
    return {heading.replace(" ", "-") for heading in plain}


def links(page: Path) -> list[str]:
    """Targets of the links and pictures of a page that lie in the repository."""
    text = _FENCE.sub("", page.read_text())
    return [link for link in _LINK.findall(text) if not re.match(r"[a-z]+:", link)]
