"""Documents that answers are looked up in: read from JSON lines and cut into passages."""

from __future__ import annotations

from collections.abc import Iterator

from ..core.bounds import NOT_UNICODE, utf8_size
from ..core.watch import UNWATCHED, Watch
from .jsonl import read_objects
from .problems import Problems

MAX_PASSAGE = 1200
"""Characters of a passage, its heading not counted: about 300 tokens."""
MAX_PASSAGES = 100_000
MAX_HEADING = 200
_SENTENCE_ENDS = (". ", "! ", "? ", "\n", "。")


def read_passages(data: bytes, field: str, watch: Watch = UNWATCHED) -> list[str]:
    """The passages of all documents, each once, in order. A document is a JSON object with a ``text``.

    Raises INVALID_ARGUMENT (``field``) with every line that is no document, and where no text is found.
    """
    problems = Problems(field)
    found: dict[str, None] = {}
    for line, value in read_objects(data, problems.add, problems.count_rows):
        text = value.get("text")
        if not isinstance(text, str):
            problems.add(line, 'the document has no "text"; give each as {"text": "..."}')
        elif utf8_size(text) is None:
            problems.add(line, f"text {NOT_UNICODE}")
        else:
            for passage in passages_of(text):
                watch()
                found[passage] = None
                if len(found) > MAX_PASSAGES:
                    raise problems.refusal(
                        f"holds more than {MAX_PASSAGES} passages; compare with the documents that matter"
                    )
    problems.check()
    if not found:
        raise problems.refusal("holds no text; give documents with at least one paragraph")
    return list(found)


def passages_of(text: str) -> Iterator[str]:
    """The paragraphs of a text, each under the last Markdown heading before it.

    A paragraph of more than ``MAX_PASSAGE`` characters is cut, after a sentence or between words where it has some.
    """
    heading, alone = "", False
    lines: list[str] = []

    def flush() -> Iterator[str]:
        paragraph = "\n".join(lines)
        lines.clear()
        yield from (f"{heading}\n{piece}" if heading else piece for piece in _pieces(paragraph))

    for line in text.splitlines():
        line = line.strip()
        title = line.lstrip("#")
        if title != line and title.startswith(" ") and len(line) - len(title) <= 6:
            if lines:
                yield from flush()
            elif alone:
                yield heading
            heading, alone = title.strip()[:MAX_HEADING], True
        elif line:
            lines.append(line)
            alone = False
        elif lines:
            yield from flush()
    if lines:
        yield from flush()
    elif alone:
        yield heading


def _pieces(paragraph: str) -> Iterator[str]:
    start = 0
    while len(paragraph) - start > MAX_PASSAGE:
        least, most = start + MAX_PASSAGE // 2, start + MAX_PASSAGE
        end = 1 + max(paragraph.rfind(mark, least, most) for mark in _SENTENCE_ENDS)
        end = end or 1 + paragraph.rfind(" ", least, most) or most
        if piece := paragraph[start:end].strip():
            yield piece
        start = end
    if piece := paragraph[start:].strip():
        yield piece
