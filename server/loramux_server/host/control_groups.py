"""Control groups of Linux: the folders that limit this process, its own first, then each parent up to the root.

Versions 1 and 2, also both at once (systemd's hybrid layout), with or without a namespace. Every function takes the
root of the file system, so that layouts of other machines can be read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

ROOT = Path("/")


@dataclass(frozen=True, slots=True)
class MemoryLevel:
    """One group that limits memory: the bytes it allows, those in use, and those of these that can be reclaimed."""

    limit: int
    used: int
    reclaimable: int

    @property
    def room(self) -> int:
        """Bytes that may still be taken: page cache and reclaimable slabs give way to whoever asks for memory."""
        return max(0, self.limit - self._held)

    @property
    def share(self) -> float:
        """The part of the limit that is in use and cannot be reclaimed."""
        return self._held / max(1, self.limit)

    @property
    def _held(self) -> int:
        return max(0, self.used - self.reclaimable)


@dataclass(frozen=True, slots=True)
class _Mount:
    """A mounted hierarchy: the group that its root shows, where it is, and whether it is version 2."""

    shows: PurePosixPath
    folder: Path
    unified: bool


def memory_levels(root: Path = ROOT) -> list[MemoryLevel]:
    """Every group with a memory limit that holds for this process."""
    levels = []
    for folder, unified in _folders("memory", root):
        level = _memory_v2(folder) if unified else _memory_v1(folder)
        if level is not None:
            levels.append(level)
    return levels


def cpu_quota(root: Path = ROOT) -> float | None:
    """Processors' worth of time that the tightest group allows; None: no group limits it."""
    quotas = []
    for folder, unified in _folders("cpu", root):
        if unified:
            parts = read(folder / "cpu.max").split()
        else:
            parts = [read(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")]
        if len(parts) == 2 and all(part.isdigit() and int(part) for part in parts):  # else "max" or -1: no limit
            quotas.append(int(parts[0]) / int(parts[1]))
    return min(quotas, default=None)


def read(path: Path) -> str:
    """The text of a small file, or nothing where it cannot be read."""
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return ""


def _memory_v2(folder: Path) -> MemoryLevel | None:
    # Above memory.high processes are slowed down until they give memory back: as good as a limit.
    limits = [int(text) for name in ("memory.max", "memory.high") if (text := read(folder / name).strip()).isdigit()]
    used = read(folder / "memory.current").strip()
    if not limits or not used.isdigit():
        return None
    stat = _numbers(folder / "memory.stat")
    names = ("inactive_file", "active_file", "slab_reclaimable")
    return MemoryLevel(min(limits), int(used), sum(stat.get(name, 0) for name in names))


def _memory_v1(folder: Path) -> MemoryLevel | None:
    limit, used = (read(folder / f"memory.{name}_in_bytes").strip() for name in ("limit", "usage"))
    if not limit.isdigit() or not used.isdigit():
        return None
    stat = _numbers(folder / "memory.stat")
    # The second is the least up to the true root, also of parents that a namespace hides. No limit is a huge number.
    least = min(int(limit), stat.get("hierarchical_memory_limit", int(limit)))
    return MemoryLevel(least, int(used), sum(stat.get(f"total_{name}", 0) for name in ("inactive_file", "active_file")))


def _numbers(path: Path) -> dict[str, int]:
    """Lines of a name and a number."""
    pairs = (line.split() for line in read(path).splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}


def _folders(controller: str, root: Path) -> Iterator[tuple[Path, bool]]:
    """The folders of this process's group and its parents, and whether they are version 2."""
    for mount in _mounts(controller, root):
        group = _group(controller if not mount.unified else "", root)
        if group is None:
            continue
        folder = mount.folder
        if ".." not in group.parts and group.is_relative_to(mount.shows):
            folder = mount.folder / group.relative_to(mount.shows)
        # Outside of what the mount shows (a namespace begun elsewhere), its root is the nearest that can be seen.
        while folder != mount.folder:
            yield folder, mount.unified
            folder = folder.parent
        yield folder, mount.unified


def _mounts(controller: str, root: Path) -> Iterator[_Mount]:
    """Where hierarchies with this controller are mounted, from lines of ``/proc/self/mountinfo``."""
    for line in read(root / "proc/self/mountinfo").splitlines():
        left, _, right = line.partition(" - ")
        fields, kind = left.split(), right.split()
        if len(fields) < 5 or len(kind) < 3:
            continue
        unified = kind[0] == "cgroup2"
        if unified or (kind[0] == "cgroup" and controller in kind[2].split(",")):
            shows, at = (_unescape(field) for field in fields[3:5])
            yield _Mount(PurePosixPath(shows), root / at.lstrip("/"), unified)


def _group(controller: str, root: Path) -> PurePosixPath | None:
    """The path of this process's group in a hierarchy, "" being version 2's."""
    for line in read(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controller in controllers.split(",") and (controller or number == "0"):
            return PurePosixPath(path)
    return None


def _unescape(field: str) -> str:
    """A path as the kernel writes it: blanks and backslashes are octal numbers."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)
