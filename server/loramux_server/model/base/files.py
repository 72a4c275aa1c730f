"""Whether the files of an NF4 copy still hold what was written when it was made. No torch.

All of them are read at every start, one thread a file: that takes about as long as reading them from a disk, and what
the loader reads next is in the page cache by then.
"""

from __future__ import annotations

import hashlib
import logging
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from ...host.resources import usable_cpus
from .fingerprint import fingerprint
from .source import MARKER, read_marker, write_marker

log = logging.getLogger(__name__)

FILES = "files"
"""Key of the marker: name -> size in bytes and SHA-256 of each file."""
MAX_THREADS = 8
JOURNAL = ".conversion.json"
"""File of a conversion under way, see :mod:`.shards`. No part of the copy."""


def describe(folder: Path) -> dict[str, dict[str, Any]]:
    """Name -> ``size`` and ``sha256`` of every file of the copy but the marker."""
    files = (path for path in sorted(folder.iterdir()) if path.is_file() and path.name not in (MARKER, JOURNAL))
    return {path.name: measure(path) for path in files}


def find_damage(folder: Path) -> str:
    """What is wrong with the files of a copy that was made here; empty: nothing.

    A copy of an older version, whose marker does not list its files, gets that list once its weights are found to be
    those that it was made with.
    """
    made = read_marker(folder)
    files = made.get(FILES)
    if files is None:
        return _adopt(folder, made)
    names = sorted(files)
    with ThreadPoolExecutor(min(MAX_THREADS, usable_cpus()), thread_name_prefix="base-check") as threads:
        found = threads.map(lambda name: _damage(folder / name, files[name]), names)
    return "; ".join(words for words in found if words)


def is_linked(folder: Path) -> bool:
    """Whether a copy is only links to files of somebody else."""
    return any(path.is_symlink() for path in folder.iterdir())


def _adopt(folder: Path, made: dict[str, Any]) -> str:
    try:
        found = fingerprint(folder)
    except (OSError, ValueError, KeyError) as error:
        return f"its weights cannot be read ({error})"
    if found != made.get("fingerprint"):
        return "its weights are not those that were written"
    with suppress(OSError):  # a folder that is only for reading is looked at this way every time
        write_marker(folder, {**made, FILES: describe(folder)})
    return ""


def _damage(path: Path, expected: dict[str, Any]) -> str:
    try:
        found = measure(path)
    except FileNotFoundError:
        return f"{path.name} is missing"
    except OSError as error:
        return f"{path.name} cannot be read ({error.strerror})"
    if found["size"] != expected["size"]:
        return f"{path.name} has {found['size']} bytes, and {expected['size']} were written"
    return "" if found == expected else f"{path.name} does not hold the bytes that were written"


def measure(path: Path) -> dict[str, Any]:
    """``size`` in bytes and ``sha256`` of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"size": file.tell(), "sha256": digest}
