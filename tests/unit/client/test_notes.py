"""What may not be meant about data is said by every command that shows a job or an adapter."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from loramux import Client
from loramux.cli import main
from loramux.types import DatasetNote
from loramux.v1 import adapters_pb2, training_pb2

from .fake import SUCCEEDED, Fake, moved, version

NOTE = training_pb2.DatasetNote(code="PLAIN_PROMPTS", text="ask with a plain prompt", count=3, line=2)


def test_field_30_notes_in_the_command_line(fake: Fake, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "d.jsonl").write_text('{"text": "a"}\n')
    made = version()
    made.asked_with = "prompt"
    fake.job.notes.append(NOTE)
    fake.job.adapter.CopyFrom(made)
    fake.handlers["WatchJob"] = lambda *_: setattr(fake.job, "state", SUCCEEDED)
    fake.watches = [[moved(1, SUCCEEDED)]] * 2
    where = ("--address", fake.address)
    assert main(["train", "acme", "--data", str(tmp_path / "d.jsonl"), *where]) == 0
    out, err = capsys.readouterr()
    assert "note: ask with a plain prompt\n" in err
    assert 'use it with: loramux generate "..." --adapter acme' in out
    assert main(["jobs", "watch", "job-1", *where]) == 0
    assert "note: ask with a plain prompt\n" in capsys.readouterr().err
    assert main(["jobs", "show", "job-1", *where]) == 0
    assert "note: ask with a plain prompt\n" in capsys.readouterr().out
    assert main(["jobs", "show", "job-1", "--json", *where]) == 0
    assert json.loads(capsys.readouterr().out)["notes"] == [
        {"code": "PLAIN_PROMPTS", "text": "ask with a plain prompt", "count": 3, "line": 2}
    ]


def test_field_30_an_adapter_shows_how_it_is_asked(fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    made = version()
    made.asked_with = "messages"
    fake.handlers["GetAdapter"] = lambda *_: adapters_pb2.Adapter(name="acme", versions=[made])
    assert main(["adapters", "show", "acme", "--address", fake.address]) == 0
    assert 'loramux generate -m "..." --adapter acme@2' in capsys.readouterr().out


def test_notes_in_python(fake: Fake, client: Client) -> None:
    fake.job.notes.append(NOTE)
    (note,) = client.jobs.get("job-1").info.notes
    assert note == DatasetNote("PLAIN_PROMPTS", "ask with a plain prompt", 3, 2)
    assert str(note) == note.text
