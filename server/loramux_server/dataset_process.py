"""A check of a large dataset in a process of its own: ``python -m loramux_server.dataset_process``.

Started by ``services.rows``, which says what is sent; not for people.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import msgspec

from .core.errors import Error
from .data.dataset import check_dataset
from .host.signals import leave_to_the_front
from .services.datasets.reader import HEADER_BYTES, Ask, Found, Frame, Refused, Rows, read_whole
from .text import TextTokenizer

NICENESS = 10
"""Requests come first."""
ROWS = 16
"""Rows in a frame: few enough that reading one holds nobody up."""


def main() -> int:
    """Check the dataset that standard input names; frames go to standard output."""
    leave_to_the_front()
    os.nice(NICENESS)
    ask = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=Ask)
    text = TextTokenizer.load(ask.tokenizer)
    try:
        dataset, problems = check_dataset(
            read_whole(Path(ask.data), ask.sha256),
            text,
            max_length=ask.max_length,
            field=ask.field,
            limits=ask.limits,
            held_out=ask.held_out,
            chat_template_kwargs=ask.chat_template_kwargs,
        )
    except Error as error:
        violations = [(violation.field, violation.description) for violation in error.violations]
        _send(Refused(error.code.value, error.message, error.reason, violations))
        return 0
    for start in range(0, len(dataset.examples), ROWS):
        _send(Rows(list(dataset.examples[start : start + ROWS])))
    _send(Found(dataset.report, problems.count, problems.listed(), problems.unit))
    return 0


def _send(frame: Frame) -> None:
    data = msgspec.msgpack.encode(frame)
    sys.stdout.buffer.write(len(data).to_bytes(HEADER_BYTES, "big") + data)
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    sys.exit(main())
