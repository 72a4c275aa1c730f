"""Which span a call names as its parent; whatever else the headers hold is as good as nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loramux_server.core.observing.tracing import MOST_STATE, TraceContext

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = f"00-{TRACE}-{SPAN}-01"


def test_a_parent_is_read_and_written() -> None:
    found = TraceContext.parse([PARENT], ["congo=t61rcWkgMzE", "rojo=1"])
    assert found == TraceContext(TRACE, SPAN, sampled=True, state="congo=t61rcWkgMzE,rojo=1")
    assert found.traceparent == PARENT
    off = TraceContext.parse([f"00-{TRACE}-{SPAN}-00"])
    assert off is not None
    assert (off.sampled, off.state, off.traceparent) == (False, "", f"00-{TRACE}-{SPAN}-00")


@pytest.mark.parametrize(
    "parent",
    [f" {PARENT}\t", f"cc-{TRACE}-{SPAN}-01", f"cc-{TRACE}-{SPAN}-01-what-comes-later", f"00-{TRACE}-{SPAN}-ff"],
)
def test_later_versions_and_unknown_flags_are_read_as_far_as_they_are_known(parent: str) -> None:
    assert TraceContext.parse([parent]) == TraceContext(TRACE, SPAN, sampled=True)


@pytest.mark.parametrize(
    "parents",
    [
        [],
        [""],
        [PARENT, PARENT],
        [f"{PARENT},{PARENT}"],
        [f"ff-{TRACE}-{SPAN}-01"],
        [f"00-{'0' * 32}-{SPAN}-01"],
        [f"00-{TRACE}-{'0' * 16}-01"],
        [f"00-{TRACE.upper()}-{SPAN}-01"],
        [f"00-{TRACE[1:]}-{SPAN}-01"],
        [f"00-{TRACE}-{SPAN}-1"],
        [f"{PARENT}-more"],
        [f"{PARENT}\n"],
        [f"cc-{TRACE}-{SPAN}-01-\x1b[31m"],
        [f"cc-{TRACE}-{SPAN}-01-{'x' * 1000}"],
        [f"00-{'٠' * 31}1-{SPAN}-01"],
    ],
)
def test_what_is_not_in_the_form_of_w3c_is_no_parent(parents: list[str]) -> None:
    assert TraceContext.parse(parents, ["congo=1"]) is None


def test_a_state_that_is_too_long_is_left_out_and_the_parent_stays() -> None:
    long = ["a=" + "x" * (MOST_STATE // 2)] * 2
    assert TraceContext.parse([PARENT], long) == TraceContext(TRACE, SPAN, sampled=True)


@given(st.lists(st.text() | st.from_regex(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}"), max_size=2))
def test_any_text_is_a_parent_in_its_form_or_none(parents: list[str]) -> None:
    found = TraceContext.parse(parents)
    if found is not None:
        assert TraceContext.parse([found.traceparent]) == found
        assert found.traceparent[3:52] == parents[0].strip(" \t")[3:52]
