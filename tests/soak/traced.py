"""The server with its Python allocations traced, from the first word in the pipe ``ask`` to the second one."""

from __future__ import annotations

import os
import runpy
import threading
import tracemalloc
from pathlib import Path

FOLDER = "TEST_SOAK_FOLDER"
"""Variable with the folder of the pipe and of the snapshot."""
ASK, SNAPSHOT = "ask", "snapshot"
FRAMES = 8


def _answer(folder: Path) -> None:
    (folder / ASK).read_bytes()
    tracemalloc.start(FRAMES)  # not before: the imports of the start would take minutes
    (folder / ASK).read_bytes()
    tracemalloc.take_snapshot().dump(str(folder / "half"))
    (folder / "half").rename(folder / SNAPSHOT)


if __name__ == "__main__":
    where = Path(os.environ[FOLDER])
    os.mkfifo(where / ASK)
    threading.Thread(target=_answer, args=(where,), daemon=True, name="snapshot").start()
    runpy.run_module("loramux_server", run_name="__main__", alter_sys=True)
