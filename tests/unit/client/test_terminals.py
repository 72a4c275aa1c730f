"""The command line on terminals and pipes of every encoding."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from loramux.cli import main
from loramux.cli.common import plain
from loramux.types import MarkedText
from loramux.v1 import adapters_pb2, inference_pb2

from .fake import RUNNING, SUCCEEDED, Fake, moved, step, version

FAMILY = "\U0001f469\u200d\U0001f469\u200d\U0001f467"  # joined by U+200D
PERSIAN = "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645"  # U+200C keeps two letters apart
HINDI = "\u0915\u094d\u200d\u0937"
HEBREW = "\u05e9\u05b8\u05dc\u05d5\u05dd\u200f!"
TEXT = f"日本語 {FAMILY}"


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: bytes
    stderr: bytes


def run(fake: Fake, *arguments: str, encoding: str = "ascii", stdin: bytes = b"") -> Done:
    """Run a command with standard streams of this encoding, strict as Python makes them."""
    out, err = io.BytesIO(), io.BytesIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", io.TextIOWrapper(out, encoding, newline="", write_through=True))
        patch.setattr(sys, "stderr", io.TextIOWrapper(err, encoding, newline="", write_through=True))
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding))
        patch.setenv("COLUMNS", "80")
        code = main([*arguments, "--address", fake.address])
        return Done(code, out.getvalue(), err.getvalue())


@pytest.fixture
def foreign(fake: Fake) -> Fake:
    """A server whose answers, names and notes are not ASCII."""
    made = version()
    made.metadata["by"] = TEXT
    fake.handlers["Generate"] = lambda *_: iter(
        [
            inference_pb2.GenerateResponse(text=TEXT, token_ids=[1]),
            inference_pb2.GenerateResponse(finish_reason=inference_pb2.FINISH_REASON_STOP),
        ]
    )
    choice = inference_pb2.Choice(text=TEXT, finish_reason=inference_pb2.FINISH_REASON_STOP)
    fake.handlers["GenerateOnce"] = lambda *_: inference_pb2.GenerateResult(choices=[choice])
    fake.handlers["GetAdapter"] = lambda *_: adapters_pb2.Adapter(name="acme", current=made, versions=[made])
    return fake


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp437", "utf-8"])
def test_field_20_an_answer_is_printed_on_any_terminal(foreign: Fake, encoding: str) -> None:
    done = run(foreign, "generate", "hi", encoding=encoding)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode(encoding).rstrip("\r\n") == TEXT.encode(encoding, "replace").decode(encoding)
    done = run(foreign, "generate", "hi", "--json", encoding=encoding)
    assert json.loads(done.stdout.decode(encoding))["choices"][0]["text"] == TEXT


def test_field_20_a_process_of_its_own_prints_on_an_ascii_pipe(foreign: Fake) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "loramux", "generate", "hi", "--address", foreign.address],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout.rstrip(), done.stderr) == (0, TEXT.encode("ascii", "replace"), b"")


def test_field_20_every_command_prints_on_an_ascii_terminal(foreign: Fake, tmp_path: Path) -> None:
    data = tmp_path / "d.jsonl"
    data.write_text('{"text": "ü"}\n', "utf-8")
    foreign.watches = [[moved(1, RUNNING, TEXT), step(2, 3), moved(3, SUCCEEDED)]]
    foreign.job.adapter.CopyFrom(version())
    foreign.handlers["WatchJob"] = lambda *_: setattr(foreign.job, "state", SUCCEEDED)
    for command in (
        ("adapters", "show", "acme"),
        ("adapters", "show", "acme", "--json"),
        ("adapters", "ls"),
        ("train", "acme", "--data", str(data)),
        ("datasets", "show", str(data), "--rows", "2"),
        ("info",),
        ("--help",),
        ("train", "--help"),
    ):
        done = run(foreign, *command)
        assert b"unexpected" not in done.stderr, command
        assert b"Traceback" not in done.stderr, command
        assert (done.stdout + done.stderr).isascii(), command
        assert done.stdout, command


def test_field_20_input_of_an_ascii_locale_is_utf_8(foreign: Fake) -> None:
    foreign.handlers.pop("Generate")
    assert run(foreign, "generate", "-", stdin="schön 日本".encode()).returncode == 0
    assert foreign.last("Generate").prompt == "schön 日本"
    done = run(foreign, "generate", "-", stdin=b"caf\xe9")
    assert (done.returncode, b"prompt" in done.stderr, b"unexpected" in done.stderr) == (1, True, False)
    done = run(foreign, "chat", stdin="schön\n".encode())
    assert foreign.last("Generate").messages[0].content == "schön"


@pytest.mark.parametrize("text", [FAMILY, PERSIAN, HINDI, HEBREW, "\u2060\u00ad\ufeff\U000e0020 \ue000", "a\n\tb"])
def test_field_21_marks_and_joiners_stay(text: str) -> None:
    assert plain(text) == text


@pytest.mark.parametrize("c", ["\x1b", "\x00", "\r", "\x08", "\x7f", "\x9b", "\u202e", "\u202a", "\u2066", "\u2069"])
def test_field_21_what_drives_the_terminal_goes(c: str) -> None:
    assert plain(f"a{c}b") == "a\ufffdb"


def test_field_21_a_dataset_in_a_pipe_is_shown_as_it_is(fake: Fake, tmp_path: Path) -> None:
    from loramux.cli.training.datasets import marked

    assert marked([MarkedText(FAMILY, True)], colour=False).plain == f"[[{FAMILY}]]"
    data = tmp_path / "d.jsonl"
    data.write_text('{"text": "a"}\n')
    done = run(fake, "datasets", "show", str(data), "--rows", "1", encoding="utf-8")
    assert "\ufffd" not in done.stdout.decode()


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_no_file_takes_the_place_of_a_stream_that_is_closed(closed: str, tmp_path: Path) -> None:
    """As supervisors start servers; the file stands for the database."""
    code = """
import os, sys
from loramux._streams import open_standard_streams
open_standard_streams()
with open(sys.argv[1], "w") as database:
    assert database.fileno() > 2
    print("to nobody", flush=True)
    print("to nobody", file=sys.stderr, flush=True)
    sys.stdin.read()
    os.system("echo to nobody; echo to nobody >&2")
    database.write("safe")
"""
    file = tmp_path / "database"
    command = f'exec "$@" {closed}'
    subprocess.run(["sh", "-c", command, "sh", sys.executable, "-c", code, file], stdin=subprocess.DEVNULL, check=True)
    assert file.read_text() == "safe"
