"""Run by test_base_streaming.py in a process of its own: a conversion that dies at a failpoint on its way."""

from __future__ import annotations

import os
from pathlib import Path

from loramux_server.host.failpoints import VARIABLE
from loramux_server.model.base import shards
from loramux_server.model.base.quantize import prepare_base


def main(model: Path, state: Path, failpoint: str) -> None:
    """Convert ``model`` into files of a few kilobytes; the process ends before, if the failpoint is reached."""
    os.environ[VARIABLE] = f"{failpoint}:kill" if failpoint else ""
    shards.SHARD_BYTES = 40_000
    prepare_base(str(model), state)


def peak(model: Path, state: Path, answer: Path) -> None:
    """Convert ``model`` and write to ``answer`` by how many bytes the most memory that was resident grew."""
    import transformers  # noqa: F401  (its own memory is no part of the answer)

    import loramux_server.model.base.nf4_copy  # noqa: F401

    before = _peak()
    prepare_base(str(model), state)
    answer.write_text(str(_peak() - before))


def _peak() -> int:
    status = Path("/proc/self/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024
