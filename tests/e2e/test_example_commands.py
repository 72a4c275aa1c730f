"""The commands of the examples from data to report, in the quick variant, on a tiny random base.

Such a base learns nothing of use: what is measured is that all is trained, asked, judged and written.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from examples.brand_voice import run as brand_voice
from examples.common.figures import Number, Share
from examples.common.report import Report, read
from examples.common.styles import QUICK_DONORS, UNSEEN
from examples.consistent_behaviour import run as consistent_behaviour
from examples.domain_knowledge import run as domain_knowledge
from examples.shorter_prompts import run as shorter_prompts
from examples.task import run as task
from loramux import Client
from tests.e2e.server_process import ServerProcess, server_process
from tests.tiny import write_model

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(600)]
ROW = {"messages": [{"role": "user", "content": "When?"}, {"role": "assistant", "content": "At nine."}]}


@pytest.fixture(scope="module")
def tiny_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server of a tiny base that has adapters in the place of the ready-made ones, which fit the default base."""
    home = tmp_path_factory.mktemp("home")
    base = write_model(home / "tiny", "llama", max_position_embeddings=4096)
    flags = ("--state-dir", str(home / "state"), "--model", str(base), "--device", "cpu", "--metrics-listen", "off")
    with server_process(home, *flags) as server:
        server.wait_for("is ready")
        with Client(server.address) as client:
            for name in (*QUICK_DONORS, *UNSEEN):
                client.train(name, [ROW], max_steps=1).wait()
        yield server


def written(folder: Path) -> Report:
    """The report in a folder, which has its table, side by side answers and picture too."""
    report = read(folder)
    assert (folder / "table.md").read_text() == report.markdown()
    assert "tiny on cpu" in report.base
    assert report.command == f"python -m examples.{report.example} --quick"
    assert report.answers
    assert "<svg" in (folder / "picture.svg").read_text()
    return report


def value(report: Report, table: int, row: str, column: str) -> float:
    """A figure of a report."""
    made = report.tables[table]
    found = next(cells for cells in made.rows if cells[0] == row)[list(made.head).index(column)]
    assert isinstance(found, Share | Number)
    return found.value


def arguments(server: ServerProcess, folder: Path) -> list[str]:
    return ["--quick", "--server", server.address, "--output", str(folder)]


def test_facts_are_trained_and_compared(tiny_server: ServerProcess, tmp_path: Path) -> None:
    domain_knowledge.main(arguments(tiny_server, tmp_path))
    report = written(tmp_path)
    sides = report.details["brindle-ski"]["sides"]
    assert set(sides) == {"base", "prompt", "retrieval", "adapter", "adapter_retrieval"}
    assert sides["adapter"]["loss"] < sides["base"]["loss"]
    assert sides["prompt"]["prompt_tokens"] > sides["retrieval"]["prompt_tokens"] > sides["adapter"]["prompt_tokens"]
    (row,) = report.tables[0].rows
    assert [cell.of for cell in row if isinstance(cell, Share)][:-1] == [domain_knowledge.QUICK_ROWS] * 5


def test_forms_are_trained_over_a_tenant_and_asked_over_another(tiny_server: ServerProcess, tmp_path: Path) -> None:
    consistent_behaviour.main(arguments(tiny_server, tmp_path))
    forms, rule = written(tmp_path).tables
    asked = consistent_behaviour.QUICK_FACTS
    assert [row[0] for row in forms.rows] == [way.title for way in consistent_behaviour.JSON_WAYS]
    assert all(isinstance(row[1], Share) and row[1].of == asked for row in forms.rows)
    assert [row[0] for row in rule.rows] == [way.title for way in consistent_behaviour.RULE_WAYS]


def test_a_voice_is_trained_over_a_tenant_and_asked_over_another(tiny_server: ServerProcess, tmp_path: Path) -> None:
    brand_voice.main(arguments(tiny_server, tmp_path))
    (marks,) = written(tmp_path).tables
    assert [row[0] for row in marks.rows] == [way.title for way in brand_voice.WAYS]
    assert all(isinstance(row[1], Share) and row[1].of == brand_voice.QUICK_FACTS for row in marks.rows)


def test_tickets_are_sorted_by_prompt_and_by_adapter(tiny_server: ServerProcess, tmp_path: Path) -> None:
    task.main(arguments(tiny_server, tmp_path))
    report = written(tmp_path)
    assert value(report, 0, "adapter, held to the labels", "answers that are a label") == 1
    tokens = "prompt tokens"
    assert value(report, 0, "adapter", tokens) < value(report, 0, "base, instructions", tokens)
    assert 0 <= value(report, 1, "with the temperature", "expected calibration error") <= 1


def test_a_page_becomes_an_adapter(tiny_server: ServerProcess, tmp_path: Path) -> None:
    shorter_prompts.main(arguments(tiny_server, tmp_path))
    report = written(tmp_path)
    tokens, nearness = "prompt tokens", "nats a token"
    assert value(report, 0, "adapter, distilled", tokens) < value(report, 0, "base with the page", tokens) / 4
    assert value(report, 1, "adapter, distilled", nearness) < value(report, 1, "base without the page", nearness)
