"""What may not be meant about data is said by every command that shows a job or an adapter."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from loramux import Client, InvalidArgument
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


def test_field_30_asked_in_the_other_way(fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    made = version()
    fake.handlers["GetAdapter"] = lambda *_: adapters_pb2.Adapter(name="acme", versions=[made])

    def told(*arguments: str) -> str:
        assert main(["generate", "hi", *arguments, "--address", fake.address]) == 0
        return capsys.readouterr().err

    assert told("-m", "-a", "acme") == ""  # not known
    made.asked_with = "prompt"
    assert told("-a", "acme") == ""
    assert 'note: acme learned plain prompts, without the chat template; ask it with: loramux generate "..."' in told(
        "-m", "-a", "acme"
    )
    made.asked_with = "messages"
    assert told("-m", "-a", "acme") == ""
    assert 'note: acme learned conversations; ask it with: loramux generate -m "..." --adapter acme' in told(
        "-a", "acme"
    )


def test_field_30_a_chat_tells_once_that_an_adapter_is_asked_in_the_other_way(
    fake: Fake, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = version()
    made.asked_with = "prompt"
    fake.handlers["GetAdapter"] = lambda *_: adapters_pb2.Adapter(name="acme", current=made, versions=[made])
    monkeypatch.setattr(sys, "stdin", io.StringIO("hi\nagain\n"))
    assert main(["chat", "-a", "acme", "--address", fake.address]) == 0
    assert capsys.readouterr().err.count("note: acme learned plain prompts, without the chat template") == 1


def test_field_30_rows_are_turned_before_they_are_sent(fake: Fake, client: Client, tmp_path: Path) -> None:
    plain = {"prompt": "Where?", "completion": " Here."}
    chat = [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": "Here."}]
    client.train("acme", [plain], validation=[plain], as_="messages")
    assert json.loads(fake.uploaded["rows.jsonl"]) == {"messages": chat}
    (tmp_path / "d.jsonl").write_text(json.dumps(plain) + "\n")
    data = str(tmp_path / "d.jsonl")
    for command in (("train", "acme", "--data", data, "--no-wait"), ("datasets", "validate", data)):
        fake.uploaded.clear()
        main([*command, "--as", "messages", "--address", fake.address])
        assert json.loads(fake.uploaded["d.jsonl"]) == {"messages": chat}
    with pytest.raises(InvalidArgument, match="not every row can be written as messages: 1 rows: is a text"):
        client.datasets.validate([plain, {"text": "a"}], as_="messages")
