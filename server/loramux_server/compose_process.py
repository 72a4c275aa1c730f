"""A merge of adapters in a process of its own: ``python -m loramux_server.compose_process``, JSON in, JSON out.

Started by ``services.composer``; not for people. A process, because the arithmetic and PEFT's import take seconds of
processor time that the engine's threads must not wait for, and because its memory is given back when it ends.
"""

from __future__ import annotations

import sys

import msgspec

from .core.compose import ComposeCommand
from .core.errors import Error
from .host.priority import give_way
from .host.signals import leave_to_the_front
from .telemetry.logs import configure_child


def main() -> int:
    """Run the command on standard input; on standard output comes a result, or an error's code, message and reason."""
    leave_to_the_front()
    configure_child()
    give_way()
    command = msgspec.json.decode(sys.stdin.buffer.read(), type=ComposeCommand)
    from .peft.compose import compose

    try:
        answer: object = compose(command)
    except Error as error:
        answer = {"code": error.code.value, "message": error.message, "reason": error.reason}
    sys.stdout.buffer.write(msgspec.json.encode(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main())
