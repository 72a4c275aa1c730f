"""What is fuzzed: something that takes bytes and may raise nothing but ``Error``."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from loramux_server.core.errors import Code, Error

CORPUS = Path(__file__).parent / "corpus"
FORBIDDEN = frozenset({Code.INTERNAL})
"""Codes of errors that mean a defect here."""


@dataclass(frozen=True)
class Target:
    """``run`` takes one input; ``seeds`` are inputs to begin with; ``pid`` is whose memory is watched."""

    name: str
    run: Callable[[bytes], object]
    seeds: Sequence[bytes]
    pid: int = field(default_factory=os.getpid)
    modules: tuple[str, ...] = ()
    """What a coverage-guided fuzzer instruments."""

    def __call__(self, data: bytes) -> None:
        """Raise for a finding: whatever is no ``Error``, or one that means a defect."""
        try:
            self.run(data)
        except Error as error:
            if error.code in FORBIDDEN:
                raise


def found_before(name: str) -> list[bytes]:
    """Inputs that were findings once."""
    folder = CORPUS / name
    return [path.read_bytes() for path in sorted(folder.iterdir())] if folder.is_dir() else []


def resident_bytes(pid: int) -> int:
    """Resident memory of a process."""
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
