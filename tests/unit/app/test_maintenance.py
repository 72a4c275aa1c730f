"""``loramux backup``, ``restore`` and ``doctor`` as an operator runs them."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from loramux.cli import main
from loramux_server.store.records import AdapterMeta
from loramux_server.store.store import Store
from tests.adapter_files import folder_of


@pytest.fixture
def state(tmp_path: Path) -> Path:
    store = Store.open(tmp_path / "state")
    source = tmp_path / "source"
    source.mkdir()
    (source / "adapter_model.safetensors").write_text("weights")
    store.adapters.publish("acme", "default", source, AdapterMeta(4, 8.0))
    store.close()
    return tmp_path / "state"


@pytest.fixture
def serving(state: Path) -> Iterator[Store]:
    """The state directory as a running server holds it."""
    store = Store.open(state)
    yield store
    store.close()


def audited(state: Path) -> list[dict[str, Any]]:
    """The lines of the audit log."""
    return [json.loads(line) for line in (state / "audit" / "audit.jsonl").read_text().splitlines()]


def run(*words: object) -> int:
    return main([str(word) for word in words])


def test_backup_beside_a_server_verify_restore(
    serving: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = serving.state.path
    assert run("backup", tmp_path / "b", "--state-dir", state, "--json") == 0
    assert json.loads(capsys.readouterr().out)["blobs"] == 1
    assert run("restore", "--verify", tmp_path / "b") == 0
    assert "is sound: 1 blobs" in capsys.readouterr().out
    assert run("restore", tmp_path / "b", "--state-dir", tmp_path / "new") == 0
    (restored,) = audited(tmp_path / "new")
    assert (restored["action"], restored["object"]) == ("restore", str(tmp_path / "b"))
    assert restored["peer"].startswith("command line of ")
    assert run("doctor", "--state-dir", tmp_path / "new") == 0
    assert "is sound" in capsys.readouterr().out
    assert run("restore", tmp_path / "b", "--state-dir", tmp_path / "new") == 1
    assert "has a database already" in capsys.readouterr().err
    assert run("backup", tmp_path / "b", "--state-dir", state) == 1
    assert "is not empty" in capsys.readouterr().err


def test_doctor_looks_beside_a_server_but_mends_only_without(
    serving: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    state = serving.state.path
    shutil.rmtree(folder_of(serving, "acme"))
    assert run("doctor", "--state-dir", state) == 1
    assert "acme@1" in capsys.readouterr().out
    assert run("doctor", "--repair", "--state-dir", state) == 1
    assert "in use by another server" in capsys.readouterr().err
    serving.close()
    assert run("doctor", "--state-dir", state, "--json") == 1
    assert [f["check"] for f in json.loads(capsys.readouterr().out)] == ["files"]
    assert run("doctor", "--repair", "--state-dir", state) == 0
    assert "quarantine the version" in capsys.readouterr().out
    (mended,) = audited(state)
    assert (mended["action"], mended["object"]) == ("doctor --repair", "acme@1")
    assert mended["details"]["remedy"].startswith("quarantine the version")
    assert run("doctor", "--state-dir", state) == 0


def test_doctor_copies_files_from_elsewhere_into_the_state_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A container's /tmp holds less than an adapter may be large."""
    (tmp_path / "source").mkdir()
    (tmp_path / "source/adapter_model.safetensors").write_text("weights")
    url = f"memory://{tmp_path.name}"
    with closing(Store.open(tmp_path / "state", None, url)) as store:
        store.adapters.publish("acme", "default", tmp_path / "source", AdapterMeta(4, 8.0))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "no such folder"))
    assert run("doctor", "--state-dir", tmp_path / "state", "--blobs-url", url) == 0, capsys.readouterr()
    assert "is sound" in capsys.readouterr().out
    assert list((tmp_path / "state/tmp").iterdir()) == []


def test_what_cannot_be_done_is_one_line(tmp_path: Path, state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (
        ("doctor", "--state-dir", tmp_path / "nothing"),
        ("backup", tmp_path / "b", "--state-dir", tmp_path / "nothing"),
        ("restore", tmp_path, "--state-dir", tmp_path / "new"),
        ("backup", tmp_path / "b", "--state-dir", state, "--database-url", "postgresql://x/y"),
    ):
        assert run(*words) in (1, 2), words
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1, lines
        assert lines[0].startswith("loramux: ")
    assert run("doctor", "--help") == 0
