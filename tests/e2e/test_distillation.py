"""A context becomes an adapter on a real server: prompts alone, which the teacher answers before it teaches."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from loramux import Client, InvalidArgument
from loramux.cli import main

from .server_process import ServerProcess

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(300)]  # a busy machine trains slowly

CONTEXT = "You are a pirate called Bo. Your ship is the Grey Gull. Always begin your answer with Ahoy!"
QUESTIONS = ("Who are you?", "What is the name of your ship?", "Where do you sail?", "What is your name?")
HELD_OUT = ("Tell me your name.", "Which ship is yours?")


def rows(questions: tuple[str, ...]) -> list[dict[str, object]]:
    return [{"messages": [{"role": "user", "content": question}]} for question in questions]


def test_a_page_of_instructions_becomes_an_adapter(server: ServerProcess, client: Client, tmp_path: Path) -> None:
    """Through the command line and the client: without its context the adapter is near to the base with it."""
    data, page, held_out = (tmp_path / name for name in ("asked.jsonl", "page.txt", "held-out.jsonl"))
    for file, questions in ((data, QUESTIONS), (held_out, HELD_OUT)):
        file.write_text("".join(json.dumps(row) + "\n" for row in rows(questions)))
    page.write_text(CONTEXT)
    options = {"max-steps": 16, "batch-size": 4, "layers": "20-29", "learning-rate": 3e-3, "max-length": 96}
    words = ["--address", server.address, "train", "pirate", "--data", str(data), "--validation", str(held_out)]
    words += ["--method", "distill", "--context", f"@{page}", "--json"]
    words += [word for name, value in options.items() for word in (f"--{name}", str(value))]
    assert main(words) == 0

    job = client.jobs.list(name="pirate")[0]
    assert (job.settings["method"], job.settings["context"]) == ("distill", CONTEXT)
    version = client.adapters.get("pirate").versions[0]
    assert version.metrics["eval_loss"] < 0.7 * version.metrics["base_loss"]
    assert version.metrics["eval_teacher_agreement"] > version.metrics["base_teacher_agreement"]
    assert version.gate_result == ""

    asked = rows(QUESTIONS[:1])[0]["messages"]
    taught = client.generate(messages=[{"role": "system", "content": CONTEXT}, *asked], max_tokens=12)  # type: ignore[misc]
    untaught = client.generate(messages=asked, max_tokens=12)  # type: ignore[arg-type]
    learned = client.generate(messages=asked, adapters=["pirate"], max_tokens=12)  # type: ignore[arg-type]
    assert learned.text == taught.text != untaught.text


def test_a_row_that_the_context_makes_too_long_is_refused_by_its_line(client: Client) -> None:
    with pytest.raises(InvalidArgument, match=r"line 1: with the context before it: the row has \d+ tokens"):
        client.train("too-long", data=rows(QUESTIONS[:1]), context=CONTEXT * 20, max_length=200)
