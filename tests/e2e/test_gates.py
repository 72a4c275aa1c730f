"""Gates on the real base: answers are asked of the engine, and a version that is no better stays a candidate."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest

from loramux import Client
from tests.e2e.server_process import ServerProcess
from tests.e2e.test_main_job import RECIPE, ROWS

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def test_a_better_version_and_a_worse_one(client: Client, tmp_path: Path) -> None:
    question = [{"role": "user", "content": "When does the mill open?"}]
    held_out = [
        {
            "messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}],
            "expect": expect,
        }
        for asked, answer, expect in (
            ("When does the mill open its door?", "The mill opens at 6:40.", "6:40"),
            ("What is the name of the miller?", "The miller is Odo Brandt.", "Odo Brandt"),
        )
    ]
    good = client.train(
        "gated",
        data=ROWS,
        validation=held_out,
        epochs=16,
        gate={"min_accuracy": 1.0},
        compare_prompt="You speak for a mill. It opens at 6:40. The miller is Odo Brandt.",
        **RECIPE,
    )
    assert good.wait(timeout=110).ref == "gated@1"
    assert good.info.gate_result == ""
    assert good.metrics["eval_accuracy"] == 1.0
    assert good.metrics["eval_questions"] == 2
    assert good.metrics["eval_loss"] < good.metrics["base_loss"]
    found = good.info.comparison
    assert found is not None
    # Two roads to the same figure: the trainer's forward, and the engine's scores of the same tokens.
    assert found.adapter.loss == pytest.approx(good.metrics["eval_loss"], rel=1e-3)
    assert found.base.loss == pytest.approx(good.metrics["base_loss"], rel=1e-3)
    assert found.adapter.loss < found.prompt.loss < found.base.loss
    assert (found.adapter.accuracy, found.base.accuracy) == (1.0, 0.0)
    assert found.prompt.prompt_tokens > found.base.prompt_tokens == found.adapter.prompt_tokens

    poor = {**RECIPE, "learning_rate": 1e-5}
    worse = client.train("gated", data=ROWS, validation=held_out, max_steps=1, gate="improves", **poor)
    assert worse.wait(timeout=110).ref == "gated@2"
    assert "that of the current version" in worse.info.gate_result
    assert worse.metrics["current_loss"] == pytest.approx(good.metrics["eval_loss"], rel=1e-2)
    assert (
        client.generate(messages=question, adapters=["gated"], max_tokens=24).text.strip()
        == ROWS[0]["messages"][1]["content"]
    )
    assert client.generate(messages=question, adapters=["gated@2"], max_tokens=4).text

    further = client.train("gated", data=ROWS, max_steps=2, init_from="gated@1", batch_size=4, learning_rate=1e-3)
    version = further.wait(timeout=110)
    assert (version.ref, version.rank) == ("gated@3", RECIPE["rank"])
    first = next(e for e in further.events() if e.type == "step")
    assert first.metrics["loss"] < 0.3
    client.adapters.download("gated@1", tmp_path / "gated")
    with (tmp_path / "gated" / "training_curve.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 16
    card = (tmp_path / "gated" / "README.md").read_text()
    assert "Gate `min_accuracy:1.0`: passed" in card
    assert "Judged by expect, contained: 2 rows." in card
    assert found.verdict in card
    assert (tmp_path / "gated" / "training_curve.png").read_bytes().startswith(b"\x89PNG")


def test_the_snippets_of_a_card_run(
    server: ServerProcess, client: Client, default_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As they stand, but for what only their reader knows: the server's address, and where folder and base lie."""
    client.train("carded", data=ROWS, max_steps=2, **RECIPE).wait(timeout=110)
    folder = tmp_path / "carded"
    version = client.adapters.download("carded", folder)
    ours, peft = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    exec(ours.replace("localhost:50051", server.address), {})
    assert capsys.readouterr().out.strip()
    names: dict[str, Any] = {}
    places = peft.replace(json.dumps(version.base_name), repr(str(default_base)))
    exec(places.replace("path/to/this/folder", str(folder)), names)
    model, base = names["model"], names["base"]
    assert model.active_adapters == ["default"]
    changed = [n for n, p in model.named_parameters() if "lora_B" in n and bool(p.any())]
    assert len(changed) == 7 * 15
    assert base.is_loaded_in_4bit
