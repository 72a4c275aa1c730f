"""``python -m tests.unit.host.no_ipv6 COMMAND...``: run a command for which the kernel has no IPv6."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import socket
import struct
import sys
from collections.abc import Sequence

SOCKET = {"x86_64": 41, "aarch64": 198}
"""Numbers of the system call."""
LOAD, IS_EQUAL, RETURN = 0x20, 0x15, 0x06
ALLOW, FAIL = 0x7FFF0000, 0x00050000
NO_NEW_PRIVS, SECCOMP, FILTER = 38, 22, 2
"""Of prctl(2) and seccomp(2)."""


def install(steps: Sequence[tuple[int, int, int, int]]) -> None:
    """Have the kernel run these steps of BPF at every system call, here and in all children, for ever."""
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(steps), ctypes.addressof(code)))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(SECCOMP, FILTER, program, 0, 0):
        raise OSError(ctypes.get_errno(), "this machine takes no seccomp filter")


def refuse_ipv6() -> None:
    """From now on ``socket(AF_INET6, ...)`` fails here and in all children, as under ``ipv6.disable=1``."""
    steps = [
        (LOAD, 0, 0, 0),  # the number of the system call
        (IS_EQUAL, 0, 3, SOCKET[platform.machine()]),
        (LOAD, 0, 0, 16),  # its first argument
        (IS_EQUAL, 0, 1, int(socket.AF_INET6)),
        (RETURN, 0, 0, FAIL | errno.EAFNOSUPPORT),
        (RETURN, 0, 0, ALLOW),
    ]
    install(steps)


if __name__ == "__main__":
    refuse_ipv6()
    os.execvp(sys.argv[1], sys.argv[1:])
