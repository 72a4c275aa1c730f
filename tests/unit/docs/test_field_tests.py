"""The page of field tests names tests that exist, and leaves no family of them out."""

from __future__ import annotations

import re

from tests.unit.docs.markdown import ROOT

PAGE = ROOT / "docs" / "field-tests.md"
NUMBERED = re.compile(r"test_field_(\d\d)_\w+")
IN_TABLE = re.compile(r"^\| (\d\d) \|(.*)$", re.MULTILINE)


def existing() -> set[str]:
    """The names of all test functions."""
    files = (ROOT / "tests").rglob("test_*.py")
    return {name for file in files for name in re.findall(r"^\s*(?:async )?def (test_\w+)\(", file.read_text(), re.M)}


def named(text: str) -> set[str]:
    """The tests that a piece of the page names."""
    return set(re.findall(r"`(test_\w+)`", text))


def test_every_test_on_the_page_exists() -> None:
    missing = named(PAGE.read_text()) - existing()
    assert not missing, f"renamed or removed: {sorted(missing)}"


def test_every_numbered_fault_has_a_line_with_its_tests() -> None:
    families: dict[str, set[str]] = {}
    for name in existing():
        if found := NUMBERED.fullmatch(name):
            families.setdefault(found[1], set()).add(name)
    lines = dict(IN_TABLE.findall(PAGE.read_text()))
    assert sorted(lines) == [f"{number:02}" for number in range(1, len(lines) + 1)]
    assert lines.keys() >= families.keys(), "new families go on the page"
    for number, line in lines.items():
        assert named(line), f"line {number} names no test"
        assert named(line) <= families.get(number, set()), f"line {number} names tests of other lines"


def test_every_test_without_a_number_is_on_the_page() -> None:
    """They share no number with a line, so the page names each."""
    field = {name for name in existing() if name.startswith("test_field_")}
    unnumbered = {name for name in field if not NUMBERED.fullmatch(name)}
    assert unnumbered
    assert unnumbered <= named(PAGE.read_text())
