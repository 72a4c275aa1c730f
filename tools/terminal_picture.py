"""Run a command and draw what it printed as an SVG picture of a terminal, for the README.

    python tools/terminal_picture.py --title "make demo" docs/images/demo.svg -- .venv/bin/loramux demo

The command gets colours but no animation, so a progress bar shows its last state. ``--skip`` leaves out lines that
match a pattern, ``--last`` keeps the end of a long output. The picture is written only if the command succeeds.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

# The picture must look the same offline: no fonts from elsewhere, the viewer's own monospace instead.
_FONTS = re.compile(r"@font-face \{.*?\}\s*", re.DOTALL)


def run(command: list[str], width: int) -> str:
    """What ``command`` prints to a terminal of that width, escape sequences included. Exits if it fails."""
    environment = os.environ | {
        "COLUMNS": str(width),
        "TERM": "xterm-256color",
        "COLORTERM": "truecolor",
        "TTY_COMPATIBLE": "1",
        "TTY_INTERACTIVE": "0",
    }
    environment.pop("NO_COLOR", None)
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    output = done.stdout.decode()
    if done.returncode:
        sys.exit(f"{output}\nno picture: the command exited with {done.returncode}")
    return output


def select(output: str, skip: str | None, last: int | None) -> list[Text]:
    """The lines to draw."""
    # Of a line that was written over, the last state counts.
    lines = [Text.from_ansi(line.rpartition("\r")[2]) for line in output.replace("\r\n", "\n").rstrip().split("\n")]
    if skip:
        lines = [line for line in lines if not re.search(skip, line.plain)]
    return lines[-last:] if last else lines


def draw(lines: list[Text], title: str, width: int) -> str:
    """The picture as SVG."""
    console = Console(record=True, width=width, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    for line in lines:
        console.print(line, soft_wrap=False, overflow="fold", highlight=False)
    picture = _FONTS.sub("", console.export_svg(title=title, theme=MONOKAI, unique_id="loramux"))
    return picture.replace("Fira Code, monospace", "ui-monospace, Menlo, monospace")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("picture", type=Path, help="SVG file to write")
    parser.add_argument("--title", help="what the window's bar says (default: the command)")
    parser.add_argument("--width", type=int, default=100, help="columns of the terminal (default: 100)")
    parser.add_argument("--skip", metavar="PATTERN", help="leave out lines that match this regular expression")
    parser.add_argument("--last", type=int, metavar="N", help="draw only the last N lines")
    parser.add_argument("command", nargs="+", help="the command, after --")
    options = parser.parse_args()
    lines = select(run(options.command, options.width), options.skip, options.last)
    options.picture.parent.mkdir(parents=True, exist_ok=True)
    options.picture.write_text(draw(lines, options.title or " ".join(options.command), options.width))


if __name__ == "__main__":
    main()
