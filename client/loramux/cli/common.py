"""What all commands share: the connection, options that recur, and how values are shown."""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer

from .._streams import encodable
from ..client import Client
from ..comparison import without_comparison
from ..errors import LoramuxError
from ..types import AppliedAdapter
from .completion import complete_adapter
from .connection import Connection

# C0 and C1 controls but tab and newline; embeddings, overrides and isolates of the bidirectional algorithm (UAX 9).
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
AdapterOption = Annotated[
    list[str] | None,
    typer.Option(
        "--adapter",
        "-a",
        metavar="NAME[@VERSION][:WEIGHT]",
        autocompletion=complete_adapter,
        help="Adapter to apply, weight 1 unless given; repeat it to stack several.",
    ),
]


TemplateArg = Annotated[
    list[str] | None,
    typer.Option(
        "--template-arg",
        metavar="KEY=VALUE",
        help="Argument of the chat template, such as enable_thinking=false; VALUE is JSON, or else text; may be"
        " repeated.",
    ),
]


Tools = Annotated[
    Path | None,
    typer.Option(
        help="JSON file with a list of tools that the model may call, for the chat template.",
        exists=True,
        dir_okay=False,
        metavar="FILE",
    ),
]


def connect(context: typer.Context) -> Client:
    """The client for the address, key and files that were given."""
    return Connection.of(context).client()


def stack(entries: Iterable[str] | None) -> list[tuple[str, float]]:
    """A stack from words such as ``acme``, ``acme@2`` and ``acme:0.5``."""
    found: list[tuple[str, float]] = []
    for entry in entries or ():
        name, colon, weight = entry.rpartition(":")
        try:
            found.append((name, float(weight)) if colon else (entry, 1.0))
        except ValueError:
            found.append((entry, 1.0))  # the colon belongs to the name
    return found


def pairs(words: Iterable[str], option: str = "--metadata") -> dict[str, str]:
    """``KEY=VALUE`` words as a dict. Raises BadParameter for ``option``."""
    found: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not key or not equals:
            raise typer.BadParameter(f"{word!r} is not KEY=VALUE", param_hint=option)
        found[key] = value
    return found


def template_args(words: Iterable[str] | None) -> dict[str, Any] | None:
    """Arguments of the chat template: values that are JSON as such, others as text; None where there are none."""

    def value(text: str) -> Any:
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return text

    return {name: value(text) for name, text in pairs(words or (), "--template-arg").items()} or None


def settings_of(context: typer.Context, kind: type) -> dict[str, Any]:
    """The options of a command that are settings of ``kind``, by name."""
    return {name: value for name, value in context.params.items() if name in kind.__annotations__}


def json_list(path: Path | None, option: str) -> list[Any] | None:
    """The list that a JSON file holds; None without a file. Raises BadParameter for ``option``."""
    if path is None:
        return None
    try:
        found = json.loads(text_file(path, option))
    except (ValueError, RecursionError) as error:
        raise typer.BadParameter(f"{path} is not JSON: {error}", param_hint=option) from None
    if not isinstance(found, list):
        raise typer.BadParameter(f"{path} does not hold a JSON list", param_hint=option)
    return found


def text_file(path: Path, option: str) -> str:
    """What a file of UTF-8 text holds. Raises BadParameter for ``option`` where it cannot be read."""
    try:
        return path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise typer.BadParameter(f"cannot read {path}: {why}", param_hint=option) from None


def error_lines(error: LoramuxError) -> list[str]:
    """An error as lines: one, or one and a line per field where several are at fault."""
    again = f"; try again in {math.ceil(error.retry_after)} s" if error.retry_after else ""
    violations = [plain(str(violation)) for violation in error.violations]
    if len(violations) > 1:
        return [f"{len(violations)} problems:{again}", *violations]
    message = plain(error.message)
    if violations and error.violations[0].description not in error.message:
        message = f"{message} ({violations[0]})"
    return [message + again]


def print_json(value: Any) -> None:
    """A value of the client, or a list of them, as JSON on stdout."""
    print(json_text(value, indent=2))


def print_result(value: Any, text: str, json: bool) -> None:
    """What a command did: the value as JSON, or a sentence."""
    if json:
        print_json(value)
    else:
        print(text)


def json_text(value: Any, indent: int | None = None) -> str:
    """A value of the client as JSON, with escapes where standard output cannot take the characters themselves."""
    plain_values = jsonable(value)
    text = json.dumps(plain_values, indent=indent, ensure_ascii=False)
    return text if encodable(text) else json.dumps(plain_values, indent=indent)


def jsonable(value: Any) -> Any:
    """Dataclasses as dicts; bytes as lists of numbers; numbers that JSON does not have as null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: jsonable(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    if isinstance(value, bytes):
        return list(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_fields(fields: Iterable[tuple[str, object]]) -> None:
    """Names and values, one a line; empty values are left out."""
    shown = [(name, plain(str(value))) for name, value in fields if value not in ("", None, (), {}, [])]
    width = max((len(name) for name, _ in shown), default=0)
    for name, value in shown:
        print(f"{name:<{width}}  {value}")


def print_notes(notes: Iterable[object], file: TextIO | None = None) -> None:
    """What may not be meant, one a line, on stdout or on ``file``."""
    for note in notes:
        print(f"note: {plain(str(note))}", file=file)


def how_to_ask(ref: str, asked_with: str) -> str:
    """The command that asks an adapter in the way that its rows were written; the option alone if that is not known."""
    option = f"--adapter {ref}"
    if not asked_with:
        return option
    return f'loramux generate {"-m " if asked_with == "messages" else ""}"..." {option}'


def asked_otherwise(client: Client, applied: Iterable[AppliedAdapter], *, chat: bool) -> Iterator[str]:
    """Which of the adapters that answered learned rows that are asked in the other way, and how to ask them."""
    for each in applied:
        try:
            version = client.adapters.get(each.ref).versions[0]
        except (LoramuxError, IndexError):
            return  # the answer has come; this only adds to it
        if version.asked_with and (version.asked_with == "messages") is not chat:
            learned = "conversations" if not chat else "plain prompts, without the chat template"
            yield f"{version.name} learned {learned}; ask it with: {how_to_ask(version.name, version.asked_with)}"


def plain(text: str) -> str:
    """Text that cannot drive the terminal: control characters and changes of direction become U+FFFD.

    Marks and joiners stay: emoji sequences, Persian, Hindi and Hebrew are written with them.
    """
    return _UNSAFE.sub("\ufffd", text)


def read_stdin() -> str:
    """What is piped in, without the line break that ends the last line of a file or an ``echo``."""
    text = sys.stdin.read().removeprefix("\ufeff")  # PowerShell begins a pipe with a mark
    return text.removesuffix("\r\n") if text.endswith("\r\n") else text.removesuffix("\n")


def write(text: str) -> None:
    """Model text to stdout at once; on a terminal without control characters."""
    sys.stdout.write(plain(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def size(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KiB", "MiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"


def moment(seconds: float) -> str:
    """Seconds since 1970 as local time; empty for 0."""
    if not seconds:
        return ""
    return datetime.datetime.fromtimestamp(seconds, tz=datetime.UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def when(seconds: float) -> str:
    """A moment in a table: the time if it was today, else the date; empty for 0."""
    today, text = moment(time.time())[:10], moment(seconds)
    return text[11:] if text.startswith(today) else text[:10]


def numbers(values: Mapping[str, float]) -> str:
    """Metrics in one line; those of a comparison have a table of their own."""
    return ", ".join(f"{name} {value:.4g}" for name, value in without_comparison(values).items())


def entries(items: Iterable[Any]) -> str:
    """A stack in one line, as the options take it; ``base`` when empty."""
    return ", ".join(i.adapter if i.weight == 1 else f"{i.adapter}:{i.weight:g}" for i in items) or "base"
