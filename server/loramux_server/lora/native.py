"""C++ sources of ours, compiled for this processor when an engine on a CPU starts; torch does it all without."""

from __future__ import annotations

import ctypes
import logging
import shutil
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path

import torch

log = logging.getLogger(__name__)

COMPILERS = ("c++", "g++", "clang++")
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fopenmp", "-shared", "-fPIC", f"-I{Path(__file__).parent}")
NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
"""What the types that the sources know are called in the names of their functions."""


@lru_cache
def build(source: Path) -> ctypes.CDLL | None:
    """The library made of a source file, or None, and a line in the log, where it cannot be had. Takes a second."""
    compiler = next((path for name in COMPILERS if (path := shutil.which(name))), None)
    if compiler is None:
        log.info("no C++ compiler found: %s is not used, steps on the CPU are slower", source.name)
        return None
    # torch's OpenMP library is loaded already and has the same name, so its threads are shared.
    with tempfile.TemporaryDirectory(prefix="loramux-") as folder:
        target = Path(folder) / "built.so"
        built = subprocess.run(
            [compiler, *FLAGS, str(source), "-o", str(target)], capture_output=True, text=True, check=False
        )
        if built.returncode == 0:
            try:
                return ctypes.CDLL(str(target))
            except OSError as error:
                log.warning("%s does not load and is not used: %s", source.name, error)
                return None
    log.warning("%s does not compile and is not used: %s", source.name, built.stderr[-500:])
    return None
