"""Names and references: only plain ones come through, and those stay inside any folder they are joined to."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loramux_server.core.errors import Code, Error
from loramux_server.store.adapters.refs import LATEST, Ref, check_alias, check_name, parse_ref
from loramux_server.store.paging import check_page_size, make_token, read_token

HOSTILE = [
    "", ".", "..", "../x", "..%2f", "/abs", "C:\\x", "a\0b", "a/b", "a\nb", "a b", "A", "-a", "_a", ".a", "ä", "a" * 65,
    "a" * 10_240, "a@", "@", "@1", "a\u202e", "a\n", "１",
]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names(name: str) -> None:
    for check in (check_name, parse_ref, check_alias):
        with pytest.raises(Error) as caught:
            check(name)
        assert caught.value.code is Code.INVALID_ARGUMENT
        assert len(caught.value.message) < 400


@pytest.mark.parametrize(
    "ref", ["a@0", "a@-1", "a@01", "a@9999999999", "a@1@2", "a@x/y", "a@ 1", "a@１", "a@" + "x" * 65]
)
def test_hostile_references(ref: str) -> None:
    with pytest.raises(Error) as caught:
        parse_ref(ref)
    assert caught.value.code is Code.INVALID_ARGUMENT


def test_references() -> None:
    assert parse_ref("acme") == Ref("acme", alias=LATEST)
    assert parse_ref("acme").bare
    assert parse_ref("acme@3") == Ref("acme", version=3)
    assert parse_ref("acme@prod") == Ref("acme", alias="prod")
    assert not parse_ref("acme@prod").bare


def test_the_field_is_named() -> None:
    with pytest.raises(Error) as caught:
        parse_ref("A", "adapters[2].adapter")
    assert caught.value.violations[0].field == "adapters[2].adapter"


@given(st.text(max_size=80) | st.text(alphabet="a0./\\%@-_~:", max_size=70))
def test_any_name_that_is_taken_stays_under_its_root(name: str) -> None:
    try:
        check_name(name)
    except Error:
        return
    root = Path("/srv/state")
    assert (root / name).resolve().parent == root
    assert parse_ref(name).name == name


@given(st.text())
def test_page_tokens_round_trip(last: str) -> None:
    assert read_token(make_token(last)) == last


@pytest.mark.parametrize("token", ["x", "W10=", "WzNd", "\ud800", "ä", "W1tdXQ==", make_token("a") + "!"])
def test_tokens_of_strangers(token: str) -> None:
    with pytest.raises(Error) as caught:
        read_token(token)
    assert caught.value.violations[0].field == "page_token"


@pytest.mark.parametrize("size", [0, -1, 1001, 2**31])
def test_page_sizes(size: int) -> None:
    with pytest.raises(Error):
        check_page_size(size)
