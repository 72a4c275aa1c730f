"""Memory of processes and their children, from /proc: zero where there is none."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path


def tree(pid: int) -> list[int]:
    """A process and everything below it."""
    found = [pid]
    for parent in found:
        for children in Path(f"/proc/{parent}/task").glob("*/children"):
            try:
                found += map(int, children.read_text().split())
            except OSError:
                continue  # it ended meanwhile
    return found


def reset_peak(pids: Iterable[int]) -> None:
    """Let the peaks begin anew, where the kernel allows it; else they count from the processes' start."""
    for pid in pids:
        try:
            Path(f"/proc/{pid}/clear_refs").write_text("5")
        except OSError:
            continue


def peak_bytes(pids: Iterable[int]) -> int:
    """Sum of the processes' largest resident sizes; pages that they share count in each."""
    total = 0
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    return total
