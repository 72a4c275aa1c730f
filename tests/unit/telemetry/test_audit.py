"""The audit log: what was written stays, whatever dies; it is bounded; nothing in it can fool a reader."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from loramux_server.core.errors import Code, Error
from loramux_server.telemetry.audit import AuditLog, Entry
from loramux_server.telemetry.audit.log import files_of

WRITER = """
import sys
from pathlib import Path
from loramux_server.telemetry.audit import AuditLog, Entry
log = AuditLog(Path(sys.argv[1]), max_bytes=int(sys.argv[3]), keep=1000)
for i in range(int(sys.argv[4])):
    log.write(Entry("DeleteAdapter", f"{sys.argv[2]}-{i}"))
    print(i, flush=True)
"""


def objects(path: Path) -> list[str]:
    lines = [line for file in files_of(path) for line in file.read_bytes().splitlines() if line]
    return [entry.object for entry in map(Entry.read, lines) if entry is not None]


def test_an_entry_is_one_line_whatever_its_values_hold() -> None:
    nasty = 'a"\n\x1b[31m{"action":"DeleteAdapter"}\r\u2028' + "x" * 10_000
    entry = Entry("UploadAdapter", nasty, "NOT_FOUND", tenant=nasty, details={"scope": nasty}, suppressed=3)
    line = entry.line()
    assert line.count(b"\n") == 1
    assert line.isascii()
    assert all(byte >= 0x20 for byte in line[:-1])
    assert len(line) < 2000
    read = Entry.read(line)
    assert read is not None
    assert (read.object, read.tenant) == (nasty[:256], nasty[:256])
    assert json.loads(line)["outcome"] == "NOT_FOUND"


def test_an_entry_is_read_as_it_was_written() -> None:
    entry = Entry("keys create", "k1", tenant="acme", key="k0", peer="ipv4:127.0.0.1:4", details={"scopes": "infer"})
    read = Entry.read(entry.line())
    assert read is not None
    assert read.line() == entry.line()


@pytest.mark.parametrize("line", [b"", b"{", b"[]", b"5", b'{"time": 5}', b'{"time": "2026"', b"\xff", b"[" * 99_999])
def test_what_is_no_entry_is_told_apart(line: bytes) -> None:
    assert Entry.read(line) is None


def test_files_are_rotated_and_the_oldest_goes(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    log = AuditLog(path, max_bytes=500, keep=3)
    log.open()
    for i in range(100):
        log.write(Entry("PinAdapter", f"a{i:03}"))
    assert [file.name for file in files_of(path)] == [*(f"audit.jsonl.{n}" for n in (3, 2, 1)), "audit.jsonl"]
    assert all(file.stat().st_size <= 500 for file in files_of(path))
    kept = objects(path)
    assert kept == [f"a{i:03}" for i in range(100 - len(kept), 100)]
    assert len(kept) > 15
    assert path.stat().st_mode & 0o077 == 0


def test_nothing_older_is_kept_where_nothing_shall_be(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    log = AuditLog(path, max_bytes=200, keep=0)
    for i in range(10):
        log.write(Entry("PinAdapter", f"a{i}"))
    assert files_of(path) == [path]
    assert objects(path)[-1] == "a9"


def test_a_torn_line_spoils_no_other(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    log = AuditLog(path)
    log.write(Entry("PinAdapter", "first"), Entry("PinAdapter", "second"))
    os.truncate(path, path.stat().st_size - 7)
    log.write(Entry("PinAdapter", "third"))
    assert objects(path) == ["first", "third"]


def test_threads_and_processes_write_to_one_file(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    log = AuditLog(path, max_bytes=3000, keep=1000)
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, path, "other", "3000", "200"], stdout=subprocess.PIPE
    ) as other:
        threads = [
            threading.Thread(target=lambda n=n: [log.write(Entry("PinAdapter", f"{n}-{i}")) for i in range(100)])
            for n in range(3)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert other.wait(60) == 0
    found = objects(path)
    assert len(files_of(path)) > 5
    own_of = {**dict.fromkeys("012", 100), "other": 200}
    assert sorted(found) == sorted(f"{name}-{i}" for name, count in own_of.items() for i in range(count))
    for n in own_of:  # and each writer's in its order
        own = [name for name in found if name.startswith(f"{n}-")]
        assert own == [f"{n}-{i}" for i in range(len(own))]


def test_what_was_told_survives_kill_9(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    command = [sys.executable, "-c", WRITER, path, "x", "2000", "1000000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        for line in writer.stdout:
            if int(line) == 50:
                break
        writer.send_signal(signal.SIGKILL)
        told = 50 + len(writer.stdout.read().split())
    found = objects(path)
    assert found == [f"x-{i}" for i in range(len(found))]
    assert len(found) > told
    AuditLog(path).write(Entry("PinAdapter", "after"))
    assert objects(path) == [*found, "after"]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Error, match="--audit-log") as caught:
        AuditLog(tmp_path / "file" / "audit.jsonl").open()
    assert caught.value.code is Code.FAILED_PRECONDITION


def test_a_full_disk_is_an_error(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.jsonl")
    log.write(Entry("PinAdapter", "first"))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (log.path.stat().st_size + 20, hard))
    try:
        with pytest.raises(Error) as caught:
            log.write(Entry("PinAdapter", "torn"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.reason == "STORAGE_FULL"
    log.write(Entry("PinAdapter", "third"))
    assert objects(log.path) == ["first", "third"]
