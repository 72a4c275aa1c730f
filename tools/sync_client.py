"""Make the sync client, ``loramux/_sync``, from the async one, ``loramux/_async``.

``python tools/sync_client.py`` writes it; ``--check`` only says what differs and exits 1 then. Docstrings change with
the code, word by word; what differs by more than words is in ``_io_async`` and ``_io_sync``.
"""

from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "client" / "loramux"
HEADER = "# Generated from _async/{} by tools/sync_client.py (make client); do not edit.\n"
RULES = (
    (r"async code; make it inside .* uses it", "ordinary (not async) code; safe to share between threads"),
    (r"as last told \(``await refresh\(\)`` asks the server\)", "now (asks the server until the state is final)"),
    (r"\ban ``async ", "a ``"),
    (r"\b(?:async|await) ", ""),
    (r"_async\b", "_sync"),
    (r"\bgrpc\.aio\b", "grpc"),
    (r"\bAsync(?=[A-Z])|(?<=\bStop)Async|(?<=\b__)a(?=(?:enter|exit|iter|next)__)|\ba(?=(?:iter|next)\()", ""),
)


def generate() -> dict[str, str]:
    """Every file of the sync client: name to content."""
    files, ruff = {}, Path(sysconfig.get_path("scripts")) / "ruff"
    for source in sorted((PACKAGE / "_async").glob("*.py")):
        text = source.read_text()
        for pattern, replacement in RULES:
            text = re.sub(pattern, replacement, text)
        for command in (["check", "--fix", "--quiet"], ["format"]):
            name = ["--stdin-filename", str(PACKAGE / "_sync" / source.name), "-"]
            text = subprocess.run([ruff, *command, *name], input=text, stdout=-1, check=True, text=True).stdout
        files[source.name] = HEADER.format(source.name) + text
    return files


def drift() -> list[str]:
    """Names of files that are missing, left over or not what the async client gives."""
    fresh, committed = generate(), {path.name: path.read_text() for path in (PACKAGE / "_sync").glob("*.py")}
    return sorted(name for name in fresh.keys() | committed.keys() if fresh.get(name) != committed.get(name))


def main(arguments: list[str]) -> int:
    if arguments == ["--check"]:
        if stale := drift():
            print(f"out of date (run: make client): {', '.join(stale)}", file=sys.stderr)
        return 1 if stale else 0
    fresh = generate()
    for path in (PACKAGE / "_sync").glob("*.py"):
        path.unlink()
    for name, text in fresh.items():
        (PACKAGE / "_sync" / name).write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
