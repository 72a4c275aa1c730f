"""Work on a large dataset in a process of its own: ``python -m loramux_server.dataset_process``.

Started by ``services.datasets.worker``, which says what is sent; not for people.
"""

from __future__ import annotations

import os
import sys

import msgspec

from .core.errors import Error
from .host.signals import leave_to_the_front
from .services.datasets.orders import Answer, Delivery, Refused
from .services.datasets.preparation import carry_out
from .text import TextTokenizer

NICENESS = 10
"""Requests come first."""


def main() -> int:
    """Carry out the order on standard input; the answer goes to standard output."""
    leave_to_the_front()
    _give_way()
    delivery = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=Delivery)
    answer: Answer
    try:
        answer = carry_out(delivery.order, TextTokenizer.load(delivery.tokenizer))
    except Error as error:
        answer = Refused.of(error)
    sys.stdout.buffer.write(msgspec.msgpack.encode(answer))
    sys.stdout.buffer.flush()
    return 0


def _give_way() -> None:
    """Take the processor's time that others leave, in long slices."""
    os.nice(NICENESS)
    if hasattr(os, "SCHED_BATCH"):
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


if __name__ == "__main__":
    sys.exit(main())
