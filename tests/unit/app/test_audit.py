"""``loramux audit`` as an operator runs it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from loramux.cli import main
from loramux_server.app.audit import record_command
from loramux_server.config import load
from loramux_server.telemetry.audit import AuditLog, Entry
from loramux_server.telemetry.audit.reading import read


def run(*words: object) -> int:
    return main(["audit", *(str(word) for word in words)])


@pytest.fixture
def log(tmp_path: Path) -> AuditLog:
    """The log of a state directory: some files, some tenants, some days."""
    log = AuditLog(tmp_path / "audit" / "audit.jsonl", max_bytes=400, keep=100)
    log.open()
    for days in range(9, -1, -1):
        time = datetime.now(UTC) - timedelta(days=days, minutes=1)
        log.write(Entry("DeleteAdapter", f"a{days}", tenant="acme" if days % 2 else "pine", key="k1", time=time))
    return log


def shown(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [json.loads(line)["object"] for line in capsys.readouterr().out.splitlines()]


def test_it_shows_all_files_oldest_first(log: AuditLog, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(list(log.path.parent.iterdir())) > 3
    assert run("--state-dir", tmp_path, "--json") == 0
    assert shown(capsys) == [f"a{days}" for days in range(9, -1, -1)]
    assert run("--audit-log", log.path, "--json", "--since", "3d") == 0
    assert shown(capsys) == ["a2", "a1", "a0"]
    day = (datetime.now(UTC) - timedelta(days=4, minutes=2)).isoformat(timespec="seconds")
    assert run("--state-dir", tmp_path, "--json", "--since", day, "--tenant", "acme") == 0
    assert shown(capsys) == ["a3", "a1"]


def test_lines_for_people_cannot_move_the_cursor(
    log: AuditLog, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log.write(Entry("GetAdapter\x1b[2J", "a\x1b[1A\r\nfaked", "NOT_FOUND", tenant="x\u2066", details={"alias": "\b"}))
    assert run("--state-dir", tmp_path, "--tenant", "x\u2066") == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.isascii()
    assert line.isprintable()
    assert re.match(r"\d{4}-\d\d-\d\dT[\d:.]+Z  NOT_FOUND +GetAdapter", line)
    assert r"a\x1b[1A\r\nfaked" in line


def test_a_torn_line_is_told_and_left_out(log: AuditLog, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.truncate(log.path, log.path.stat().st_size - 9)
    assert run("--state-dir", tmp_path, "--json", "--since", "1d") == 0
    found = capsys.readouterr()
    assert found.out == ""
    assert "1 line(s) were cut" in found.err


def test_what_cannot_be_shown_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--state-dir", tmp_path) == 1
    assert "no audit log at" in capsys.readouterr().err
    assert run("--audit-log", "off") == 2
    assert "--audit-log" in capsys.readouterr().err
    assert run("--since", "yesterday") == 2
    assert "30m, 12h or 7d" in capsys.readouterr().err


def test_following_loses_nothing_over_rotations(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.jsonl", max_bytes=400, keep=100)
    log.write(Entry("PinAdapter", "0"))
    written = 1

    def write_some() -> None:
        """A burst that rotates several times, its last line in two halves: the second one comes with the next burst."""
        nonlocal written
        if rest:
            with log.path.open("ab") as file:
                file.write(rest.pop())
        for _ in range(20):
            log.write(Entry("PinAdapter", str(written)))
            written += 1
        line = Entry("PinAdapter", str(written)).line()
        with log.path.open("ab") as file:
            file.write(line[:20])
        rest.append(line[20:])
        written += 1

    rest: list[bytes] = []
    entries = read(log.path, follow=True, wait=write_some)
    found = [next(entries) for _ in range(100)]
    assert [entry and entry.object for entry in found] == [str(i) for i in range(100)]


def test_follow_prints_what_comes(tmp_path: Path) -> None:
    settings = load({"state_dir": str(tmp_path)}).settings
    record_command(settings, "keys create", "k1", tenant="acme", scopes="infer")
    command = [sys.executable, "-m", "loramux_server", "audit", "--state-dir", tmp_path, "--follow"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as follower:
        assert follower.stdout is not None
        assert "keys create  k1  tenant=acme  peer=command line of " in follower.stdout.readline()
        record_command(settings, "keys revoke", "k1", tenant="acme")
        assert "keys revoke  k1" in follower.stdout.readline()
        follower.terminate()
