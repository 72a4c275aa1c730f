"""Settings of training are told in four places: the code, the page, ``--help`` and the comments of the API."""

from __future__ import annotations

import re
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import pytest

from loramux._wire.messages.train_requests import TrainOptions
from loramux.cli.training import train as cli
from loramux_server.core.jobs import TrainSpec
from tests.unit.docs.markdown import ROOT

PAGE = (ROOT / "docs" / "training.md").read_text()
PROTO = (ROOT / "protos" / "loramux" / "v1" / "training.proto").read_text()
CHOSEN = {"learning_rate", "method", "replay_rows"}
"""Settings whose default the server chooses for the job."""


def table() -> dict[str, tuple[str, str]]:
    """Default and remark of each setting on the page."""
    text = PAGE.split("\n## Settings\n")[1].split("\n### ")[0]
    found: dict[str, tuple[str, str]] = {}
    for line in text.splitlines():
        if not line.startswith("| `"):
            continue
        names, defaults, remark = (cell.strip() for cell in line.strip("|").split(" | ", 2))
        every = re.findall(r"`(\w+)`", names)
        each = [part.strip(" `") for part in defaults.split(", ")]
        found |= {name: (each[i] if len(each) == len(every) else defaults, remark) for i, name in enumerate(every)}
    return found


def options() -> dict[str, Any]:
    """What typer shows of each option of ``loramux train``."""
    hints = get_type_hints(cli.train, include_extras=True)
    return {name: get_args(hint)[1] for name, hint in hints.items() if get_origin(hint) is Annotated}


def comments() -> dict[str, str]:
    """The comment above each field of ``TrainSettings``."""
    body = PROTO.split("message TrainSettings {")[1].split("\n}")[0]
    found = re.findall(r"((?:  // [^\n]*\n)+)  (?:optional|repeated) \w+ (\w+) = ", body)
    return {name: " ".join(comment.replace("//", "").split()) for comment, name in found}


def test_every_setting_is_told_everywhere() -> None:
    names = set(TrainOptions.__annotations__)
    assert names <= table().keys()
    assert names <= options().keys()
    assert names <= comments().keys()


@pytest.mark.parametrize("name", sorted(set(TrainOptions.__annotations__) - CHOSEN))
def test_defaults_agree(name: str) -> None:
    """A number that one of them tells is the one that is used."""
    value = getattr(TrainSpec(), name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return
    told = {
        "the page": table()[name][0],
        "--help": getattr(options()[name], "show_default", None),
        "the API": (re.search(r"Default ([\d.e-]+\d|\d)", comments()[name]) or [None, None])[1],
    }
    for where, text in told.items():
        if isinstance(text, str) and re.fullmatch(r"[\d.e-]+", text):
            assert float(text) == value, f"{where} says {text}"
    assert told["the page"] or told["--help"]


def test_field_35_help_and_docs_say_that_max_steps_overrides_epochs() -> None:
    for text in (table()["max_steps"][1], options()["max_steps"].help, comments()["max_steps"]):
        plain = text.replace("`", "").replace("--", "")
        assert "overrides epochs, going through the rows as often as it takes" in plain
        assert "Most " not in text
