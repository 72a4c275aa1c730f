"""Named points at which a test can make the process die or a durable step fail.

``LORAMUX_FAILPOINT=name:kill`` ends the process at that point as ``kill -9`` would; ``name:raise`` raises
:class:`FailpointError`, an input/output error; several are separated by commas. Unset, a point costs one look-up.
"""

from __future__ import annotations

import errno
import os
import signal

VARIABLE = "LORAMUX_FAILPOINT"


class FailpointError(OSError):
    """The failure that a test asked for."""


def reach(name: str) -> None:
    """Do what the environment says about ``name``; nothing unless it says something."""
    wanted = os.environ.get(VARIABLE)
    if not wanted:
        return
    for entry in wanted.split(","):
        point, _, action = entry.partition(":")
        if point != name:
            continue
        if action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif action == "raise":
            raise FailpointError(errno.EIO, f"failpoint {name}")
        else:
            raise ValueError(f"{VARIABLE}: {entry!r} is not NAME:kill or NAME:raise")
