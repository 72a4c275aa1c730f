"""The demo's own rules: what counts as an answer, what is found where, what a false claim does."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from loramux_server.demo.main import look_around, main
from loramux_server.demo.material import NEIGHBOUR, STYLE, TENANT, Fact, Material, Missing, inside_json
from loramux_server.demo.show import Show

ADAPTERS = Path(__file__).parents[3] / "adapters"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("It costs $17 a day.", True),
        ("It costs $17.", True),
        ("It costs $17.50.", False),
        ("It costs $170.", False),
        ("It costs 17 dollars.", False),
    ],
)
def test_a_fact_counts_as_words_of_its_own(text: str, told: bool) -> None:
    assert Fact("How much?", "It costs $17 a day.", "$17").told_by(text) is told


@pytest.mark.parametrize(
    ("text", "inside"),
    [
        ('{"answer": "We open at 8."}', "We open at 8."),
        ('{"answer": 8}', None),
        ('{"answer": "a", "more": 1}', None),
        ('Sure: {"answer": "a"}', None),
        ("[]", None),
    ],
)
def test_json_answers(text: str, inside: str | None) -> None:
    assert inside_json(text) == inside


def test_the_shipped_facts_have_questions_that_no_training_row_has() -> None:
    material = Material(ADAPTERS)
    for tenant in (TENANT, NEIGHBOUR):
        facts = material.facts(tenant)
        assert len(facts) == 24
        trained = material.rows(tenant).read_text("utf-8")
        assert not [f.question for f in facts if f'"{f.question}"' in trained]
        assert all(f.told_by(f.answer) for f in facts)


def test_missing_adapters_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Missing, match=str(tmp_path)):
        Material.find(str(tmp_path))
    (tmp_path / "data" / "source").mkdir(parents=True)
    assert main(["--adapters", str(tmp_path)]) == 1
    assert NEIGHBOUR in capsys.readouterr().err
    for name in (NEIGHBOUR, STYLE):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_model.safetensors").write_bytes(b"x")
    assert Material.find(str(tmp_path)).root == tmp_path


def test_output_fits_80_columns_without_a_terminal_and_keeps_failed_claims() -> None:
    out = io.StringIO()
    show = Show(Console(file=out))
    show.step("A title")
    show.table(("question", "answer"), [("What is it? " * 8, "It is [bold] not markup. " * 6)])
    show.claim(True, "right " * 30)
    show.claim(False, "wrong")
    text = out.getvalue()
    assert "\x1b" not in text
    assert "[bold]" in text
    assert max(map(len, text.splitlines())) <= 80
    assert show.failed == ["wrong"]


class Keyboard(io.StringIO):
    """A terminal at which somebody presses Enter."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("terminal", [True, False])
def test_a_server_that_somebody_looks_at_is_kept_until_enter(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    out, keyboard = io.StringIO(), Keyboard("\nmore")
    monkeypatch.setattr("sys.stdin", keyboard)
    look_around(Show(Console(file=out, force_terminal=terminal)), "http://127.0.0.1:8123/")
    assert ("http://127.0.0.1:8123/" in out.getvalue()) is terminal
    assert keyboard.read() == ("more" if terminal else "\nmore")


def test_flags(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "loramux demo" in capsys.readouterr().out
    assert main(["--nonsense"]) == 2
