"""``loramux profile`` and ``client.profile``: the file is there whole, or as it was before."""

from __future__ import annotations

import json
from pathlib import Path

import grpc
import pytest

import loramux
from loramux import Client
from loramux.v1 import common_pb2, server_pb2

from .fake import Fake
from .test_cli import Shell, shell

__all__ = ["shell"]


def header(size: int, dropped: int = 0) -> server_pb2.ProfileEngineResponse:
    files = [common_pb2.FileInfo(name="../../evil", size=size)]  # the client chooses the name, not the server
    told = server_pb2.ProfileEngineHeader(files=files, events=5, events_dropped=dropped)
    return server_pb2.ProfileEngineResponse(header=told)


def piece(data: bytes) -> server_pb2.ProfileEngineResponse:
    return server_pb2.ProfileEngineResponse(chunk=common_pb2.FileChunk(name="x", data=data))


def test_a_profile_is_written_to_the_file(fake: Fake, shell: Shell, tmp_path: Path) -> None:
    fake.profile = [header(4, dropped=2), piece(b"ab"), piece(b"cd")]
    file = tmp_path / "p.json.gz"
    assert shell("profile", "--seconds", "2.5", "--no-kernels", "-o", str(file)) == 0
    asked = fake.last("ProfileEngine")
    assert (asked.seconds, asked.without_kernels) == (2.5, True)
    assert shell.out == f"wrote {file} (4 B, 5 events, 2 more left out); open it at https://ui.perfetto.dev\n"
    assert file.read_bytes() == b"abcd"
    assert [*tmp_path.iterdir()] == [file]


def test_without_output_the_file_has_the_time(
    fake: Fake, shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    fake.profile = [header(1), piece(b"a")]
    assert shell("profile", "--json") == 0
    (file,) = tmp_path.iterdir()
    assert json.loads(shell.out) == {"path": file.name, "size": 1, "events": 5, "events_dropped": 0}
    assert file.match("loramux-profile-*-*.json.gz")
    assert fake.last("ProfileEngine").seconds == 10


@pytest.mark.parametrize(
    ("sent", "error"),
    [
        ([grpc.StatusCode.RESOURCE_EXHAUSTED], loramux.ResourceExhausted),
        ([header(4), piece(b"ab"), grpc.StatusCode.UNAVAILABLE], loramux.Unavailable),
        ([header(4), piece(b"ab")], loramux.DataLoss),
        ([piece(b"ab")], loramux.DataLoss),
        ([], loramux.DataLoss),
    ],
)
def test_a_profile_that_does_not_come_leaves_all_as_it_was(
    fake: Fake, client: Client, tmp_path: Path, sent: list[object], error: type[Exception]
) -> None:
    file = tmp_path / "p.json.gz"
    file.write_bytes(b"before")
    fake.profile = sent
    with pytest.raises(error):
        client.profile(file, 1)
    assert [*tmp_path.iterdir()] == [file]
    assert file.read_bytes() == b"before"


def test_a_place_that_cannot_be_written_to_is_told_before_anything_is_asked(
    fake: Fake, shell: Shell, tmp_path: Path
) -> None:
    assert shell("profile", "-o", str(tmp_path / "none" / "p.gz")) == 1
    assert "No such file or directory" in shell.err
    assert "Traceback" not in shell.err
    assert fake.count("ProfileEngine") == 0
