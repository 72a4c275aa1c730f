"""What this host lets the process have: memory and processors, within its control groups."""

from __future__ import annotations

import os
import resource
from contextlib import suppress
from pathlib import Path

from .control_groups import ROOT, cpu_quota, memory_levels, read

MOST_OPEN_FILES = 65_536


def take_open_files() -> None:
    """Let this process and its children open as many files as the hard limit allows, ``MOST_OPEN_FILES`` at most.

    systemd and shells begin with 1,024, fewer than clients may have connections.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):  # where the system refuses, the limit stays
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def host_available(root: Path = ROOT) -> int:
    """Bytes of memory that this process may still take."""
    free = _meminfo("MemAvailable", root)
    if free is None:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([free, *(level.room for level in memory_levels(root))])


def host_total(root: Path = ROOT) -> int:
    """Bytes of memory that the host, or the tightest of its control groups, has."""
    total = _meminfo("MemTotal", root)
    if total is None:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([total, *(level.limit for level in memory_levels(root))])


def memory_share(root: Path = ROOT) -> float:
    """The part of the tightest memory limit of the control groups that is in use; 0 where none limits it."""
    return max((level.share for level in memory_levels(root)), default=0.0)


def process_memory(root: Path = ROOT) -> int:
    """Resident bytes of this process."""
    fields = read(root / "proc/self/statm").split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") if fields else 0


def usable_cpus(root: Path = ROOT, affinity: int | None = None) -> int:
    """Processors that this process may keep busy: its affinity, or the quota of its control groups rounded down.

    At least 1. More threads than the quota would all stand still for the rest of each period.
    """
    cpus = affinity if affinity is not None else host_cpus()
    quota = cpu_quota(root)
    return max(1, cpus if quota is None else min(cpus, int(quota)))


def host_cpus() -> int:
    """Processors that this process may run on, whatever the quota."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _meminfo(name: str, root: Path) -> int | None:
    for line in read(root / "proc/meminfo").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return None
