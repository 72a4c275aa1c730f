"""Standard streams of a process whose terminal or pipe may not be UTF-8."""

from __future__ import annotations

import codecs
import io
import os
import sys
from contextlib import suppress


def open_standard_streams() -> None:
    """Open the null device in place of standard streams that this process was started without, as ``<&-`` does.

    Without it the next files that are opened, such as a database, get the numbers of those streams: what is printed
    would go into them, and libraries abort. Call it before anything else is opened.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            with suppress(OSError):  # without a null device either there is nothing to open
                opened = os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is this one
                os.set_inheritable(opened, True)
        if getattr(sys, name) is None:
            with suppress(OSError):
                setattr(sys, name, open(number, "w" if number else "r", closefd=False))  # noqa: SIM115


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
