"""Work on a large dataset in a process of its own: ``python -m loramux_server.dataset_process``.

Started by ``services.datasets.worker``, which says what is sent; not for people.
"""

from __future__ import annotations

import sys

import msgspec

from .core.errors import Error
from .host.priority import Pacer, give_way
from .host.signals import leave_to_the_front
from .services.datasets.orders import Answer, Delivery, Refused
from .services.datasets.preparation import carry_out
from .telemetry.logs import configure_child
from .text import TextTokenizer


def main() -> int:
    """Carry out the order on standard input; the answer goes to standard output."""
    leave_to_the_front()
    configure_child()
    give_way()
    delivery = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=Delivery)
    answer: Answer
    try:
        answer = carry_out(delivery.order, TextTokenizer.load(delivery.tokenizer), Pacer())
    except Error as error:
        answer = Refused.of(error)
    sys.stdout.buffer.write(msgspec.msgpack.encode(answer))
    sys.stdout.buffer.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
