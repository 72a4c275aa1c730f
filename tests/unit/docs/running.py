"""Runs the examples of a page against a server, as a reader would who follows it from top to bottom."""

from __future__ import annotations

import ast
import asyncio
import inspect
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from contextlib import chdir
from pathlib import Path
from typing import Any

from tests.unit.docs.markdown import SHELLS, Block, commands

DOCUMENTED, DOCUMENTED_HTTP = "localhost:50051", "127.0.0.1:8000"
"""The addresses that examples name."""


def run_page(blocks: Iterable[Block], address: str, folder: Path, http: str = "") -> int:
    """Write the page's files to ``folder``, run its ``test: e2e`` blocks there, and say how many ran.

    Python blocks share one namespace, so a later one may use what an earlier one made. In shell blocks the ``loramux``
    and ``curl`` lines are run. ``address`` and ``http`` stand in for the addresses that examples name. Raises what an
    example raises, CalledProcessError for a command that fails.
    """
    names: dict[str, Any] = {"__name__": "__main__"}
    ran = 0
    for block in blocks:
        kind, _, value = block.mark.partition(": ")
        if kind == "file":
            (folder / value).write_text(block.text)
        elif block.mark == "test: e2e" and block.language in SHELLS:
            _run_shell(block, address, http, folder)
            ran += 1
        elif block.mark == "test: e2e":
            _run_python(block, names, {DOCUMENTED: address, DOCUMENTED_HTTP: http}, folder)
            ran += 1
    return ran


def _run_python(block: Block, names: dict[str, Any], addresses: Mapping[str, str], folder: Path) -> None:
    text = "\n" * (block.line - 1) + block.text
    for documented, address in addresses.items():
        text = text.replace(documented, address)
    code = compile(text, str(block.path), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    with chdir(folder):
        if code.co_flags & inspect.CO_COROUTINE:
            asyncio.run(eval(code, names))
        else:
            exec(code, names)


def _run_shell(block: Block, address: str, http: str, folder: Path) -> None:
    environment = os.environ | {"LORAMUX_ADDRESS": address, "NO_COLOR": "1"}
    for words in commands(block):
        if Path(words[0]).name == "loramux":
            command = [sys.executable, "-m", "loramux", *(w.replace(DOCUMENTED, address) for w in words[1:])]
        elif words[0] == "curl":
            command = ["curl", "--fail-with-body", *(w.replace(DOCUMENTED_HTTP, http) for w in words[1:])]
        else:
            continue
        subprocess.run(command, cwd=folder, env=environment, check=True, stdin=subprocess.DEVNULL, timeout=300)
