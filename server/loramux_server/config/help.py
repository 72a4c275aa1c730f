"""Command lines of the server, whose help looks like that of the client's commands."""

from __future__ import annotations

import argparse
import inspect
import textwrap
from collections.abc import Iterable
from typing import Any

WIDTH = 80
"""Most columns of help, as the client's commands have it."""
INDENT = "  "


def make_parser(
    prog: str,
    description: str | None,
    kind: type[argparse.ArgumentParser] = argparse.ArgumentParser,
    *,
    of: argparse._SubParsersAction[argparse.ArgumentParser] | None = None,
    name: str = "",
    **options: Any,
) -> argparse.ArgumentParser:
    """A parser with ``--help`` and no abbreviations; with ``of``, that of its command ``name``."""
    options |= {"prog": prog, "description": inspect.cleandoc(description or "")}
    options |= {"formatter_class": _Help, "allow_abbrev": False, "add_help": False}
    parser = kind(**options) if of is None else of.add_parser(name, help=(description or "").splitlines()[0], **options)
    parser._positionals.title, parser._optionals.title = "Arguments", "Options"
    parser.add_argument("-h", "--help", action="help", help="Show this message and exit.")
    return parser


class _Help(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34)
        self._width = min(self._width, WIDTH)

    def add_usage(
        self,
        usage: str | None,
        actions: Iterable[argparse.Action],
        groups: Iterable[argparse._MutuallyExclusiveGroup],
        prefix: str | None = None,
    ) -> None:
        super().add_usage(usage, actions, groups, prefix or "Usage: ")

    def add_text(self, text: str | None) -> None:
        if text and text is not argparse.SUPPRESS:
            text = "\n".join(line for part in text.splitlines() for line in self._indented(part))
        super().add_text(text)

    def _indented(self, line: str) -> list[str]:
        if len(line) + len(INDENT) <= WIDTH:
            return [INDENT + line if line else ""]
        return textwrap.wrap(line, WIDTH, initial_indent=INDENT, subsequent_indent=INDENT)
