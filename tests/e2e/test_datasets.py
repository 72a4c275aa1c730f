"""Datasets on a real server: shown, checked with what they cost here, and trained on with replay."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from loramux import Client, InvalidArgument

pytestmark = pytest.mark.e2e

ROWS = Path(__file__).parents[2] / "adapters/data/messages/acme-bikes/train.jsonl"


def test_rows_are_shown_with_what_is_learned(client: Client, tmp_path: Path) -> None:
    table = tmp_path / "rows.csv"
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["prompt", "chosen", "rejected"])
        writer.writerow(["The capital of France is", " Paris.", " Rome."])
        writer.writerow(["The capital of Italy is", " Rome.", " Rome."])
    report = client.datasets.show(table, rows=5)
    (row,) = report.shown
    assert (row.line, report.pairs, report.rows) == (2, True, 1)
    assert [(part.text, part.trained) for part in row.text] == [
        ("The capital of France is", False),
        (" Paris.<|im_end|>", True),
    ]
    assert row.rejected[1].text == " Rome.<|im_end|>"
    assert [(p.line, p.description) for p in report.problems] == [(3, "chosen and rejected are the same answer")]
    assert client.datasets.upload(table) in client.datasets.list()
    (row,) = client.datasets.show(ROWS, rows=1, line=3).shown
    assert row.line == 3
    assert row.text[0].text.endswith("<|im_start|>assistant\n")
    assert row.text[1].text.endswith("<|im_end|>")


@pytest.mark.timeout(300)  # a busy machine trains slowly
def test_time_and_memory_are_told_before_and_after_a_job(client: Client) -> None:
    settings = {"layers": "29", "max_steps": 5, "batch_size": 2, "rank": 4, "learning_rate": 1e-3}
    before = client.datasets.validate(ROWS, **settings)
    assert before.valid
    assert before.estimated_seconds
    assert before.estimated_memory_bytes
    job = client.train("dataset-costs", data=ROWS, replay="default", replay_rows=4, **settings)
    job.wait()
    assert job.info.settings["replay_rows"] == 4
    assert job.info.settings["method"] == "sft"
    after = client.datasets.validate(ROWS, **settings)
    assert after.estimated_from == f"the speed of job {job.id}"
    assert after.estimated_seconds


@pytest.mark.slow
def test_pairs_teach_what_is_preferred(client: Client, tmp_path: Path) -> None:
    table = tmp_path / "polite.csv"
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["prompt", "chosen", "rejected"])
        for thing in ("bike", "boat", "book", "bell"):
            writer.writerow([f"May I have the {thing}?", f" With pleasure, the {thing}.", " No."])
    job = client.train("polite", data=table, layers="20-29", learning_rate=3e-3, epochs=5, batch_size=4, rank=4)
    version = job.wait()
    assert job.info.settings["method"] == "dpo"
    assert version.metrics["rewards_accuracy"] == 1.0
    question, stack = "May I have the bag?", [version.ref]
    liking = [
        client.score(question, " With pleasure, the bag.", adapters=adapters).total
        - client.score(question, " No.", adapters=adapters).total
        for adapters in (stack, [])
    ]
    assert liking[0] > liking[1] + 1


def test_tools_that_the_default_template_hides_are_refused(client: Client) -> None:
    rows = [json.loads(ROWS.read_text().splitlines()[0]) | {"tools": [{"type": "function", "function": {"name": "f"}}]}]
    with pytest.raises(InvalidArgument, match="the chat template ignores tools"):
        client.train("tools", data=rows)
