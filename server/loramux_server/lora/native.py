"""C++ sources of ours, compiled for this processor when an engine on a CPU first starts; torch does it all without."""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path

import torch

log = logging.getLogger(__name__)

COMPILERS = ("c++", "g++", "clang++")
HEADER = Path(__file__).with_name("vectors.h")
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fopenmp", "-shared", "-fPIC", f"-I{HEADER.parent}")
NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
"""What the types that the sources know are called in the names of their functions."""


@lru_cache
def build(source: Path) -> ctypes.CDLL | None:
    """The library made of a source file, or None, and a line in the log, where it cannot be had.

    It takes a second or two and is kept in the user's cache folder, by all that it was made from.
    """
    compiler = next((path for name in COMPILERS if (path := shutil.which(name))), None)
    if compiler is None:
        log.info("no C++ compiler found: %s is not used, steps on the CPU are slower", source.name)
        return None
    try:
        target = _cache() / f"{source.stem}-{_identity(source, compiler)}.so"
        if not target.exists():
            _compile(source, compiler, target)
        # torch's OpenMP library is loaded already and has the same name, so its threads are shared.
        return ctypes.CDLL(str(target))
    except subprocess.CalledProcessError as error:
        log.warning("%s does not compile and is not used: %s", source.name, str(error.stderr)[-500:])
    except OSError as error:
        log.warning("%s is not used: %s", source.name, error)
    return None


def _cache() -> Path:
    """A folder that is this user's alone. Raises OSError where there is none to be had."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "loramux"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if folder.stat().st_uid == os.getuid() and os.access(folder, os.W_OK):
            return folder
    except (OSError, RuntimeError):
        pass
    return Path(tempfile.mkdtemp(prefix="loramux-"))


def _identity(source: Path, compiler: str) -> str:
    """Names all that a build depends on: sources, flags, compiler, processor."""
    version = subprocess.run([compiler, "--version"], capture_output=True, check=True).stdout
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    processor = next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
    parts = [source.read_bytes(), HEADER.read_bytes(), *map(str.encode, (*FLAGS, compiler, processor)), version]
    return hashlib.blake2b(b"\0".join(parts), digest_size=12).hexdigest()


def _compile(source: Path, compiler: str, target: Path) -> None:
    """Whole or not at all: several engines may start at once."""
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        made = Path(folder) / target.name
        subprocess.run([compiler, *FLAGS, str(source), "-o", str(made)], capture_output=True, text=True, check=True)
        made.replace(target)
