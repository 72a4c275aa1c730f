"""The voice: how an answer is put into it, and the marks that it is judged by.

``python -m examples.brand_voice.voice`` writes the training rows in ``data/`` anew.
"""

from __future__ import annotations

import re
from pathlib import Path

from examples.common.rows import write_rows
from examples.common.styles import training_rows

DATA = Path(__file__).parent / "data"
WORDINGS = 1
"""Of each fact in the training rows."""

GREETING = "Hi there!"
CLOSING = "Enjoy your day!"
LONGEST = 16
"""Most words of a sentence."""
PLAIN = {
    "we are": "we're",
    "it is": "it's",
    "that is": "that's",
    "you are": "you're",
    "there is": "there's",
    "do not": "don't",
    "does not": "doesn't",
    "cannot": "can't",
    "we will": "we'll",
    "you will": "you'll",
    "please": "just",
    "must": "need to",
    "recommend": "love",
}
"""Words that the voice avoids, and what it says instead."""
PROMPT = (
    f'Answer in our voice: begin with "{GREETING}" and end with "{CLOSING}". Between them write one or two sentences '
    f"of at most {LONGEST} words. Use short forms such as we're, it's and don't. Never write: please, must, recommend. "
    f"Example: {GREETING} We're open from nine. {CLOSING}"
)
_AVOIDED = re.compile(rf"\b({'|'.join(PLAIN)})\b", re.IGNORECASE)
_JOINT = re.compile(r"[,;] (?:and |but |so )(?=(?:we|you|it|they|that|guests|pulling|registering|leave|somebody)\b)")


def in_voice(text: str) -> str:
    """An answer in the voice."""
    return f"{GREETING} {_plain(text)} {CLOSING}"


def _plain(text: str) -> str:
    """Short forms for long ones, and a full stop where a sentence begins anew half-way."""

    def shorter(found: re.Match[str]) -> str:
        said = PLAIN[found[0].lower()]
        return said.capitalize() if found[0][0].isupper() else said

    parts = _JOINT.split(text)
    return _AVOIDED.sub(shorter, ". ".join(part[:1].upper() + part[1:] for part in parts))


def body(answer: str) -> str:
    """What stands between greeting and closing, as far as they are there."""
    return answer.strip().removeprefix(GREETING).removesuffix(CLOSING).strip()


def marks(answer: str) -> dict[str, bool]:
    """Which marks of the voice an answer has."""
    said = answer.strip()
    sentences = re.split(r"(?<=[.!?])\s+", body(answer))
    return {
        "greeting": said.startswith(f"{GREETING} "),
        "closing": said.endswith(f" {CLOSING}"),
        "short sentences": all(len(sentence.split()) <= LONGEST for sentence in sentences),
        "no avoided word": not _AVOIDED.search(said),
    }


def main() -> None:
    """Write the training rows."""
    write_rows(DATA / "train.jsonl", training_rows(in_voice, WORDINGS))


if __name__ == "__main__":
    main()
