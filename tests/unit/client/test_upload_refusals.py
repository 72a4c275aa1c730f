"""What ``adapters upload`` does not take, said before anything is sent."""

from __future__ import annotations

import tarfile
import zipfile
from pathlib import Path

import pytest

from loramux import InvalidArgument
from loramux._wire.files import upload_adapter


def zipped(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../adapter_config.json", "{}")


def tarred(path: Path) -> None:
    with tarfile.open(path, "w:gz") as archive:
        archive.add(__file__, "../../etc/x")


def config_alone(path: Path) -> None:
    path.mkdir()
    (path / "adapter_config.json").write_text("{}")


def pickled(path: Path) -> None:
    config_alone(path)
    (path / "adapter_model.bin").write_bytes(b"\x80\x04.")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (zipped, "is no folder"),
        (tarred, "is no folder"),
        (lambda path: None, "is no folder"),
        (config_alone, "has no adapter_model.safetensors"),
        (pickled, "pickled"),
    ],
)
def test_only_folders_of_plain_files(tmp_path: Path, make, words: str) -> None:  # type: ignore[no-untyped-def]
    make(tmp_path / "adapter.zip")
    with pytest.raises(InvalidArgument, match=words):
        list(upload_adapter("acme", tmp_path / "adapter.zip", set_current=True, metadata=None))
    assert sorted(p.name for p in tmp_path.rglob("*") if p.name.startswith("etc")) == []
