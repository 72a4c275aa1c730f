"""``python -m tests.e2e.system_calls COMMAND...``: run a command with the system calls that the unit allows."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.unit.host.no_ipv6 import ALLOW, FAIL, IS_EQUAL, LOAD, RETURN, install

UNIT = Path(__file__).parents[2] / "deploy/systemd/loramux.service"


def numbers() -> dict[str, int]:
    """System calls of this machine, as the C compiler's headers name them."""
    command = ["cc", "-E", "-dM", "-include", "sys/syscall.h", "-x", "c", "/dev/null"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {name: int(number) for name, number in re.findall(r"^#define __NR_(\w+) (\d+)$", text, re.MULTILINE)}


def members(group: str) -> Iterator[str]:
    """The system calls of one of systemd's groups, those of the groups in it too."""
    told = subprocess.run(["systemd-analyze", "syscall-filter", group], capture_output=True, text=True, check=True)
    for line in told.stdout.splitlines()[1:]:
        word = line.strip()
        if word.startswith("@"):
            yield from members(word)
        elif word and not word.startswith("#"):
            yield word


def allowed() -> set[str]:
    """What the lines of the unit leave: the first names what may be called, those with ~ take from it."""
    names: set[str] = set()
    for line in re.findall(r"^SystemCallFilter=(.+)$", UNIT.read_text(), re.MULTILINE):
        listed = {name for group in line.removeprefix("~").split() for name in members(group)}
        names = names - listed if line.startswith("~") else names | listed
    return names | set(members("@default"))  # systemd always allows these


def main() -> None:
    known = numbers()
    steps = [(LOAD, 0, 0, 0)]
    for name in sorted(allowed() & known.keys()):
        steps += [(IS_EQUAL, 0, 1, known[name]), (RETURN, 0, 0, ALLOW)]
    install([*steps, (RETURN, 0, 0, FAIL | errno.EPERM)])
    try:
        os.fchown(os.memfd_create("ours"), -1, -1)  # which anybody may do elsewhere
    except PermissionError:
        os.execvp(sys.argv[1], sys.argv[1:])
    raise SystemExit("system calls beyond the unit's are not refused")


if __name__ == "__main__":
    main()
