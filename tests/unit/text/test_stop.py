"""Stop strings, against a plain search over the whole text."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from loramux_server.text import StopMatcher

letters = st.text("ab🙂\n", max_size=30)
stop_lists = st.lists(st.text("ab🙂\n", min_size=1, max_size=4), max_size=4)


def _oracle(text: str, stops: list[str]) -> tuple[str, str | None]:
    for end in range(len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            longest = max(found, key=len)
            return text[: end - len(longest)], longest
    return text, None


def _cut(text: str, cuts: list[int]) -> list[str]:
    places = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    return [text[start:end] for start, end in pairwise(places)]


@given(letters, stop_lists, st.lists(st.integers(0, 30), max_size=10))
def test_pieces_give_what_the_whole_gives(text: str, stops: list[str], cuts: list[int]) -> None:
    expected, found = _oracle(text, stops)
    matcher = StopMatcher(stops)
    out, stop = "", None
    for piece in _cut(text, cuts):
        result = matcher.push(piece)
        out += result.text
        assert expected.startswith(out)  # nothing of a stop string ever got out
        stop = result.stop
        if stop is not None:
            break
    if stop is None:
        out += matcher.finish()
    assert (out, stop) == (expected, found)


@given(letters, stop_lists)
def test_no_more_is_held_back_than_may_become_a_stop(text: str, stops: list[str]) -> None:
    matcher = StopMatcher(stops)
    result = matcher.push(text)
    if result.stop is None:
        held = matcher.finish()
        assert result.text + held == text
        assert held == "" or any(stop.startswith(held) and stop != held for stop in stops)


def test_without_stops_everything_goes_out_at_once() -> None:
    matcher = StopMatcher([])
    assert matcher.push("abc").text == "abc"
    assert matcher.finish() == ""


def test_after_a_stop_nothing_comes() -> None:
    matcher = StopMatcher(["END"])
    assert matcher.push("one E").text == "one "
    assert matcher.push("ND two").stop == "END"
    assert matcher.push("three") == matcher.push("four")
    assert matcher.push("three").text == ""
    assert matcher.finish() == ""
