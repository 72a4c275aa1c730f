"""The generated code is what protos/ gives, and protos/ keeps to buf's rules."""

from __future__ import annotations

import importlib.util
import subprocess
import sysconfig
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def protos() -> ModuleType:
    spec = importlib.util.spec_from_file_location("protos", ROOT / "tools" / "protos.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_code_is_in_step(protos: ModuleType) -> None:
    assert protos.drift() == []


def test_a_change_is_seen(protos: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "protos" / "loramux" / "v1"
    folder.mkdir(parents=True)
    for proto in (ROOT / "protos" / "loramux" / "v1").glob("*.proto"):
        text = proto.read_text()
        if proto.name == "server.proto":
            text = text.replace("string version = 1;", "string edition = 1;")
        (folder / proto.name).write_text(text)
    monkeypatch.setattr(protos, "PROTOS", tmp_path / "protos")
    assert protos.drift() == ["server_pb2.py", "server_pb2.pyi"]


def test_protos_are_clean() -> None:
    buf = Path(sysconfig.get_path("scripts")) / "buf"
    done = subprocess.run([buf, "lint"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
