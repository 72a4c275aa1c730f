"""Standard streams of a process whose terminal or pipe may not be UTF-8."""

from __future__ import annotations

import codecs
import io
import sys


def tolerate_encodings() -> None:
    """Let this process print what its streams cannot encode, and read what they cannot decode.

    Output gets ``?`` for such a character instead of an exception that loses the whole answer. ASCII input is read
    as UTF-8, which it is a part of; bytes that are no text become lone surrogates, which the API refuses by name.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    if isinstance(sys.stdin, io.TextIOWrapper):
        ascii_only = codecs.lookup(sys.stdin.encoding).name == "ascii"
        sys.stdin.reconfigure(encoding="utf-8" if ascii_only else None, errors="surrogateescape")


def encodable(text: str) -> bool:
    """Whether standard output can take a text as it is."""
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return False
    return True
