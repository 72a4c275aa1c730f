"""What a client writes cannot forge a line, another field, or a terminal's commands, nor make a line of any length."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loramux_server.telemetry.logs.lines import MOST_TEXT, ForPeople, cleaned, json_line

HEAD = {"timestamp": "12:00:00", "level": "info", "logger": "loramux_server.x", "event": "request"}
NASTY = (
    *("\n", "\r\n", "\x1b[2J", "\x9b2J", "\x85", "\u2028", "\u202e", "\ud800", "\x00", "\x7f", " ", "=", '"', "\\"),
    *('","level":"error', "12:00:00 [info    ] request", " code=OK ", "ü"),
)
hostile = st.lists(st.one_of(st.sampled_from(NASTY), st.text(max_size=8)), max_size=6).map("".join)
values = st.recursive(
    st.one_of(hostile, st.none(), st.booleans(), st.integers(), st.floats(), st.binary(max_size=8)),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(hostile, inner, max_size=3)),
    max_leaves=6,
)
PEOPLE = ForPeople(colors=False)
FIELDS = re.compile(r'(?<= )([a-z_]+)=("(?:[^"\\]|\\.)*"|[^ "=]*)(?= |$)')


@given(hostile, values)
def test_a_line_of_json_has_the_fields_that_were_given_and_no_others(text: str, value: Any) -> None:
    line = json_line(cleaned({**HEAD, "name": text, "value": value}))
    assert line.isascii()
    assert line.isprintable()
    found = json.loads(line)
    assert list(found) == [*HEAD, "name", "value"]
    assert found["name"] == text
    assert {key: found[key] for key in HEAD} == HEAD


@given(hostile, values)
def test_a_line_for_people_is_one_line_with_the_fields_that_were_given(text: str, value: Any) -> None:
    line = PEOPLE(cleaned({**HEAD, "name": text, "value": value}))
    assert line.isprintable()
    head, _, rest = line.partition("[loramux_server.x]")
    assert head.split() == ["12:00:00", "[info", "]", "request"]
    found = FIELDS.findall(rest)
    assert [name for name, _ in found] == ["name", "value"]
    assert "".join(f" {name}={shown}" for name, shown in found) == rest


@given(hostile)
def test_what_a_library_says_is_one_line(text: str) -> None:
    assert PEOPLE(cleaned({**HEAD, "event": text})).isprintable()


@given(hostile)
def test_lines_of_a_traceback_cannot_be_taken_for_others(text: str) -> None:
    event = cleaned({**HEAD, "exception": f"Traceback:\nValueError: {text}\n12:00:00 [info] request"})
    first, *others = PEOPLE(event).split("\n")
    assert first.startswith("12:00:00 [info")
    assert others
    assert all(line.startswith("    ") and line.isprintable() for line in others)


@pytest.mark.parametrize("render", [json_line, PEOPLE])
def test_huge_values_make_no_huge_line(render: Any) -> None:
    huge = "x" * 10_000_000
    event = {
        **HEAD,
        "text": huge,
        "list": [huge] * 3 + [1] * 1000,
        "deep": [[[[[[[huge]]]]]]],
        "number": 7**100_000,
        "exception": "\n".join([huge] * 2 + ["line"] * 100_000 + ["ValueError: the end"]),
    }
    line = render(cleaned(event))
    assert len(line) < 20 * MOST_TEXT
    assert "(10000000 characters)" in line
    assert "ValueError: the end" in line
