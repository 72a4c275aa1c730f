"""Make the Python code of protos/ under client/: messages, stubs and their types.

``python tools/protos.py`` writes them; ``--check`` only says what differs and exits 1 then.
The proto package ``loramux.v1`` becomes the Python package of that name, so the imports in the generated files hold
as they are.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
TARGET = ROOT / "client"
PACKAGE = Path("loramux/v1")
PATTERNS = ("*_pb2.py", "*_pb2.pyi", "*_pb2_grpc.py", "*_pb2_grpc.pyi")

# A newer generator writes its own version into the files; that alone is no drift.
_VERSIONS = re.compile(
    r"^# Protobuf Python Version: .*$"
    r"|^GRPC_GENERATED_VERSION = .*$"
    r"|^# (?:NO CHECKED-IN )?protoc.*$"
    r"|ValidateProtobufRuntimeVersion\([^)]*\)",
    re.MULTILINE,
)


def generate(target: Path) -> None:
    """Write the generated files of every proto under ``target / PACKAGE``."""
    files = sorted(str(p.relative_to(PROTOS)) for p in PROTOS.rglob("*.proto"))
    command = [
        *(sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={PROTOS}"),
        *(f"--python_out={target}", f"--grpc_python_out={target}"),
        *(f"--mypy_out=quiet:{target}", f"--mypy_grpc_out=quiet:{target}"),
        *files,
    ]
    # protoc looks for its plugins on PATH; ours lie beside this interpreter.
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")])
    subprocess.run(command, check=True, env={**os.environ, "PATH": path})


def read(folder: Path) -> dict[str, str]:
    """Generated files of a folder: name to content, without the generators' versions."""
    return {p.name: _VERSIONS.sub("", p.read_text()) for pattern in PATTERNS for p in folder.glob(pattern)}


def drift() -> list[str]:
    """Names of generated files that are missing, left over or not what protos/ gives."""
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        fresh = read(Path(folder) / PACKAGE)
    committed = read(TARGET / PACKAGE)
    return sorted(name for name in fresh.keys() | committed.keys() if fresh.get(name) != committed.get(name))


def write() -> None:
    """Replace the committed files by fresh ones."""
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        for pattern in PATTERNS:
            for old in (TARGET / PACKAGE).glob(pattern):
                old.unlink()
            for new in (Path(folder) / PACKAGE).glob(pattern):
                shutil.copy(new, TARGET / PACKAGE / new.name)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if the files are out of date")
    if not parser.parse_args().check:
        write()
        return 0
    stale = drift()
    if stale:
        print(f"out of date (run: make protos): {', '.join(stale)}", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
