"""C++ sources of ours, compiled for this processor when an engine on a CPU first starts; torch does it all without.

A build is kept in the first of these folders from which it can be loaded: ``$XDG_CACHE_HOME/loramux`` (or
``~/.cache/loramux``), ``cache`` in the state directory, a temporary folder of this process. Nothing is loaded from a
folder or file that another user owns or may write to.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import logging
import os
import platform
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import torch

log = logging.getLogger(__name__)

COMPILERS = ("c++", "g++", "clang++")
HEADER = Path(__file__).with_name("vectors.h")
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fopenmp", "-shared", "-fPIC", f"-I{HEADER.parent}")
NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
"""What the types that the sources know are called in the names of their functions."""

_state_dir: Path | None = None


def keep_in(state_dir: Path) -> None:
    """Name the state directory, where builds go if the user's cache folder cannot be used."""
    global _state_dir
    _state_dir = state_dir


@lru_cache
def build(source: Path) -> ctypes.CDLL | None:
    """The library made of a source file, or None, and a warning in the log, where it cannot be had.

    Compiling takes a second or two. A build is found again by all that it was made from, the processor included.
    """
    compiler = next((path for name in COMPILERS if (path := shutil.which(name))), None)
    if compiler is None:
        _slower(f"no C++ compiler is found ({', '.join(COMPILERS)})", "Install one, for example Debian's package g++")
        return None
    made: bytes | None = None
    problem: Exception | None = None
    try:
        identity = _identity(source, compiler)
        for folder in _folders():
            try:
                library = _find(folder, identity)
                if library is None:
                    made = made or _compile(source, compiler, folder)
                    library = _load(_store(folder, identity, made))
                return library
            except OSError as error:  # of the file system, or of the loader, where code there must not run
                problem = problem or error
    except subprocess.CalledProcessError as error:
        _slower(f"{source.name} does not compile: {str(error.stderr)[-500:]}", f"Look at {compiler}, or try another")
        return None
    except OSError as error:  # no folder for the compiler's own files, or no memory
        problem = problem or error
    _slower(
        f"compiled functions cannot be loaded: {problem}",
        "Let XDG_CACHE_HOME or --state-dir be on a file system that is writable and not mounted noexec, in folders "
        "that only the server's user may write to",
    )
    return None


@lru_cache  # once, though there are several sources
def _slower(reason: str, remedy: str) -> None:
    log.warning("%s. Steps on the CPU take about twice as long without. %s", reason, remedy)


def _folders() -> Iterator[Path]:
    """Folders of this user's alone in which a build may lie, best first. Those that cannot be had are left out."""
    wanted = []
    with contextlib.suppress(RuntimeError):  # no HOME, and a user without a line in passwd
        wanted.append(Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "loramux")
    if _state_dir is not None:
        wanted.append(_state_dir / "cache")
    for folder in wanted:
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            _check_owner(folder)
        except OSError as error:
            log.info("no compiled functions are kept in %s: %s", folder, error)
            continue
        yield folder
    with tempfile.TemporaryDirectory(prefix="loramux-") as name:  # a loaded library stays when its file goes
        yield Path(name)


def _check_owner(path: Path) -> None:
    """Raise PermissionError where others than this user and root could have put code of theirs."""
    found = path.lstat()
    if stat.S_ISLNK(found.st_mode):
        found = path.stat()
    if found.st_uid not in (os.getuid(), 0) or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError(f"{path} is another user's, or others may write to it")


def _find(folder: Path, identity: str) -> ctypes.CDLL | None:
    """An earlier build. Its name ends with the digest of its bytes: loading a damaged one could end the process."""
    for path in sorted(folder.glob(f"{identity}-*.so")):
        _check_owner(path)
        if path.stem.rpartition("-")[2] == _digest(path.read_bytes()):
            return _load(path)
        log.warning("%s is damaged and is built anew", path)
        path.unlink()
    return None


def _store(folder: Path, identity: str, made: bytes) -> Path:
    """Keep a build, whole or not at all: several engines may start at once."""
    target = folder / f"{identity}-{_digest(made)}.so"
    descriptor, name = tempfile.mkstemp(dir=folder, suffix=".part")  # 0600, whatever the umask
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(made)
        Path(name).replace(target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return target


def _load(path: Path) -> ctypes.CDLL:
    # torch's OpenMP library is loaded already and has the same name, so its threads are shared.
    return ctypes.CDLL(str(path))


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=12).hexdigest()


def _identity(source: Path, compiler: str) -> str:
    """Names all that a build depends on: sources, flags, compiler, processor."""
    version = subprocess.run([compiler, "--version"], capture_output=True, check=True).stdout
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    processor = next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
    parts = [source.read_bytes(), HEADER.read_bytes(), *map(str.encode, (*FLAGS, compiler, processor)), version]
    made_from = _digest(b"\0".join(parts))
    return f"{source.stem}-{made_from}"


def _compile(source: Path, compiler: str, folder: Path) -> bytes:
    """The library's bytes. The compiler keeps its own files in ``folder`` too: there may be no other place."""
    with tempfile.TemporaryDirectory(prefix="building-", dir=folder) as scratch:
        made = Path(scratch) / "made.so"
        command, environment = [compiler, *FLAGS, str(source), "-o", str(made)], {**os.environ, "TMPDIR": scratch}
        subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        return made.read_bytes()
