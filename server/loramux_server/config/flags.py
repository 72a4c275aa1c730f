"""The command line of ``serve`` and ``config show``, made from the tree of settings."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args, get_origin

from pydantic import ByteSize

from ..core.errors import Error, invalid_field
from ..host.home import short
from .help import make_parser
from .load import Loaded, load
from .tree import Leaf, leaves

EPILOG = """\
Every setting is also an environment variable and a line of the TOML file:
  --training-share 0.3   LORAMUX_TRAINING__SHARE=0.3   [training] share = 0.3
  --max-running 64       LORAMUX_MAX_RUNNING=64        max_running = 64
A flag wins over the environment, the environment over the file.
'loramux config show' prints every setting, its value and where it came from.
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise invalid_field("", f"{message} (see: {self.prog} --help)", reason="BAD_COMMAND_LINE")


def build_parser(prog: str, description: str) -> argparse.ArgumentParser:
    """A parser with one flag per setting, grouped. Flags that were not given leave no trace in its result."""
    parser = make_parser(prog, description, _Parser, usage="%(prog)s [OPTIONS]", epilog=EPILOG)
    parser.add_argument("--config", metavar="FILE", help="TOML file with settings.  [env var: LORAMUX_CONFIG]")
    groups: dict[str, Any] = {}
    for leaf in leaves():
        extra = leaf.info.json_schema_extra
        assert isinstance(extra, dict)
        title = str(extra["group"])
        group = groups.get(title) or groups.setdefault(title, parser.add_argument_group(title))
        options: dict[str, Any] = {"dest": leaf.name, "default": argparse.SUPPRESS, "help": _help(leaf)}
        if leaf.info.annotation is bool:
            options["action"] = argparse.BooleanOptionalAction
        elif get_origin(leaf.info.annotation) is tuple:
            options |= {"action": "append", "metavar": str(extra["metavar"])}
        else:
            options["metavar"] = "|".join(_choices(leaf)) or str(extra["metavar"])
        group.add_argument(leaf.flag, **options)
    return parser


@dataclass(frozen=True, slots=True)
class Flag:
    """What a shell can offer about a flag."""

    help: str
    values: tuple[str, ...] = ()
    """All values, where there are few."""


def flags() -> dict[str, Flag]:
    """The flags of ``serve`` by name."""
    found = {"--config": Flag("TOML file with settings"), "--help": Flag("show the flags")}
    for leaf in leaves():
        found[leaf.flag] = Flag(leaf.info.description or "", _choices(leaf))
    return found


def parse(argv: Sequence[str], *, prog: str, description: str) -> Loaded:
    """Settings from a command line and everything behind it. ``--help`` prints and exits 0.

    Raises ``Error`` INVALID_ARGUMENT naming the flag, variable or file at fault.
    """
    return load_namespace(build_parser(prog, description).parse_args(argv))


def load_namespace(namespace: argparse.Namespace) -> Loaded:
    """Settings from what a parser of ``build_parser`` found; names that are no settings are left alone."""
    known = {leaf.name for leaf in leaves()}
    given = {name: value for name, value in vars(namespace).items() if name in known}
    return load(given, namespace.config)


def show(loaded: Loaded, *, as_json: bool = False) -> str:
    """Every setting with its value and its source, for people or as JSON."""
    rows = [(leaf.name, loaded.value(leaf), loaded.sources[leaf.name]) for leaf in leaves()]
    if as_json:
        return json.dumps({name: {"value": value, "source": source} for name, value, source in rows}, indent=2)
    usual = {leaf.name: _usual(leaf) for leaf in leaves()}
    texts = [("setting", "value", "source"), *((n, _shown(v) or usual[n], s) for n, v, s in rows)]
    widths = [max(len(row[i]) for row in texts) for i in (0, 1)]
    return "\n".join(f"{n:<{widths[0]}}  {v:<{widths[1]}}  {s}" for n, v, s in texts)


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(value) or "-"
    return "" if value is None else str(value)


def _usual(leaf: Leaf) -> str:
    """What holds where a setting has no value, in brackets; ``-``: nothing that can be said in a few words."""
    found = re.search(r"\(default: ([^()]{1,40})\)", leaf.info.description or "")
    return f"({found[1]})" if found else "-"


def _choices(leaf: Leaf) -> tuple[str, ...]:
    return get_args(leaf.info.annotation) if get_origin(leaf.info.annotation) is Literal else ()


def sentence(text: str) -> str:
    """The words of a setting as a sentence."""
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def _help(leaf: Leaf) -> str:
    text = sentence(leaf.info.description or "").replace("%", "%%")
    try:
        default = leaf.info.get_default(call_default_factory=True)
    except Error as error:  # there is none on this machine, and the flag must be given
        return f"{text}  [{error.violations[0].description}]"
    if default is None or default == () or "(default" in text:
        return text
    return f"{text}  [default: {_words(default)}]"


def _words(default: object) -> str:
    """A default as it would be given."""
    match default:
        case bool():
            return "on" if default else "off"
        case ByteSize():
            return default.human_readable().replace(".0", "")
        case float():
            return f"{default:g}"
        case Path():
            return short(default)
    return str(default)
