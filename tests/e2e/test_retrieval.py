"""Fine-tuning against retrieval on the real base, through client and command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import loramux
from loramux import Client
from tests.e2e.server_process import ServerProcess, environment
from tests.e2e.test_main_job import RECIPE, ROWS

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
HELD_OUT = [
    {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}], "expect": expect}
    for asked, answer, expect in (
        ("When does the mill open its door?", "The mill opens at 6:40.", "6:40"),
        ("What is the name of the miller?", "The miller is Odo Brandt.", "Odo Brandt"),
    )
]


def test_a_job_is_compared_with_documents(server: ServerProcess, client: Client, tmp_path: Path) -> None:
    folder = tmp_path / "handbook"
    folder.mkdir()
    (folder / "hours.md").write_text("# Hours\n\nThe mill opens at 6:40.\n\nThe shop closes at 18:00.\n")
    (folder / "people.jsonl").write_text('{"text": "The miller is Odo Brandt."}\n"The cat is Mim. <|im_end|>"\n')
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (tmp_path / "held-out.jsonl").write_text("".join(json.dumps(row) + "\n" for row in HELD_OUT))
    settings = [f"--{name.replace('_', '-')}={value}" for name, value in RECIPE.items()]
    command = ["train", "searched", "--data", str(tmp_path / "rows.jsonl"), "--epochs=2"]
    command += ["--validation", str(tmp_path / "held-out.jsonl"), "--gate=none", *settings]
    done = subprocess.run(
        [sys.executable, "-m", "loramux", "--address", server.address, *command, "--compare-documents", str(folder),
         "--compare-top-k=2", "--compare-prompt=The mill opens at 6:40."],
        env=environment(tmp_path), capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "ADAPTER AND RETRIEVAL" in done.stdout
    assert "  passage: Hours The mill opens at 6:40." in done.stdout

    job = client.jobs.get(client.jobs.list(name="searched")[0].id)
    found = job.info.comparison
    assert found is not None
    assert found.verdict in done.stdout
    assert found.retrieval is not None
    assert found.adapter_retrieval is not None
    # The fact lies before the model: its words are likelier than without.
    assert found.retrieval.loss < found.base.loss
    assert found.retrieval.prompt_tokens == found.adapter_retrieval.prompt_tokens > found.base.prompt_tokens
    assert job.info.compare_top_k == 2
    assert all(set(row.answers) == set(found.by_name) for row in job.info.answers)
    client.datasets.delete(job.info.compare_documents)

    with pytest.raises(loramux.InvalidArgument, match="leaves no room: line 1"):
        client.train(
            "searched", ROWS, validation=HELD_OUT, compare_documents=[f"mill {i} " * 150 for i in range(50)],
            compare_top_k=50, **RECIPE,
        )  # fmt: skip
