"""``loramux datasets convert``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from ..._wire.messages.fields import file_of
from ...convert import As, convert, rows_of, write_rows
from ..common import Json, json_text, plain

AsOption = Annotated[
    Literal["messages", "prompt"] | None,
    typer.Option(
        "--as",
        help="Shape to turn rows into: messages, asked through the chat template, or prompt, plain text.",
        show_default="as they are",
    ),
]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("convert")(convert_file)


def convert_file(
    file: Annotated[
        Path, typer.Argument(help="Rows of any tool: .jsonl, .json, .csv, .tsv or .parquet.", show_default=False)
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="File to write; replaced if it is there.", show_default="stdout")
    ] = None,
    as_: AsOption = None,
    json: Json = False,
) -> None:
    """Turn training data of other tools into loramux's rows.

    It says what was mapped, not used and left out.

    ShareGPT, Alpaca, question and answer (question/answer, query/response, input/output, ...), preferences with a
    question, Gemini, and loramux's own rows with further fields. Rows whose label or rating says that the answer is bad
    are left out. No server is asked. The rows go to stdout or to --out, the summary to stderr.

    \b
    Examples:
      loramux datasets convert sharegpt.json -o rows.jsonl
      loramux datasets convert faq.csv --as prompt | head
    """  # noqa: D301
    shape: As | None = as_
    if out is not None:
        summary = convert(file, out, as_=shape)
    else:
        path = file_of("data", file)
        sys.stdout.flush()
        summary = write_rows(lambda: rows_of(path), sys.stdout.buffer, as_=shape)
        sys.stdout.buffer.flush()
    if json:
        print(json_text(summary, indent=2), file=sys.stderr if out is None else None)
        return
    for line in summary.lines():
        print(plain(line), file=sys.stderr)
