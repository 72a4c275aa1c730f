"""A copy of the base that is not what was written is found at the start: made again, or refused with words."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from loramux_server.core.errors import Code, Error
from loramux_server.model.base.quantize import Prepared, prepare, prepare_base
from loramux_server.model.base.source import read_marker
from tests.damage import HARMS, flip_bit
from tests.tiny import write_model


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model ``m`` and its NF4 copy under ``base``."""
    root = tmp_path_factory.mktemp("made")
    prepare_base(str(write_model(root / "m", "llama")), root)
    return root


@pytest.fixture
def root(made: Path) -> Path:
    """The same again, for a test to damage: the copy is put back afterwards."""
    (copy,) = (made / "base").glob("[!.]*/")
    kept = made / "kept"
    if not kept.exists():
        shutil.copytree(copy, kept)
    shutil.rmtree(copy)
    shutil.copytree(kept, copy)
    return made


def copy_in(root: Path) -> Path:
    (copy,) = (path for path in (root / "base").iterdir() if path.is_dir() and not path.name.startswith("."))
    return copy


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
@pytest.mark.parametrize("harm", HARMS.values(), ids=HARMS)
def test_field_02_a_damaged_base_is_made_again(root: Path, harm: Callable[[Path], None], name: str) -> None:
    copy = copy_in(root)
    before, whole = read_marker(copy)["fingerprint"], (copy / name).read_bytes()
    harm(copy / name)
    prepared = prepare(str(root / "m"), root)
    assert prepared.folder == copy
    assert name in prepared.damage
    assert (copy / name).read_bytes() == whole
    assert read_marker(copy)["fingerprint"] == before
    assert (root / "base" / f".{copy.name}.damaged").is_dir()
    assert prepare(str(root / "m"), root) == Prepared(copy)


def test_field_02_a_damaged_base_without_its_source_is_refused(tmp_path: Path, root: Path) -> None:
    state = tmp_path / "state"
    shutil.copytree(root / "base", state / "base")
    copy = copy_in(state)
    marker = copy / "loramux.json"
    found = {key: value for key, value in json.loads(marker.read_text()).items() if key != "sha256"}
    source = {"kind": "hub", "repo": "org/gone", "commit": "0" * 40, "asked": "org/gone"}
    marker.write_text(json.dumps({**found, "asked": "org/gone", "source": source}))
    assert prepare("org/gone", state) == Prepared(copy)
    flip_bit(copy / "model.safetensors")
    with pytest.raises(Error, match=r"model\.safetensors") as caught:
        prepare("org/gone", state)
    assert (caught.value.code, caught.value.reason) == (Code.DATA_LOSS, "BASE_DAMAGED")
    assert (copy / "model.safetensors").exists()  # left for whoever mends it


def test_field_02_a_base_that_is_used_as_it_is_is_not_made_from_damaged_files(tmp_path: Path, root: Path) -> None:
    nf4 = tmp_path / "nf4"
    shutil.copytree(copy_in(root), nf4)
    (nf4 / "loramux.json").unlink()
    copy = prepare_base(str(nf4), tmp_path)
    weights = nf4 / "model.safetensors"
    stat, whole = weights.stat(), weights.read_bytes()
    flip_bit(weights)
    set_time(weights, stat.st_mtime_ns)
    with pytest.raises(Error, match="bring these files back") as caught:
        prepare_base(str(nf4), tmp_path)
    assert caught.value.code is Code.DATA_LOSS
    weights.write_bytes(whole)
    set_time(weights, stat.st_mtime_ns)
    assert prepare_base(str(nf4), tmp_path) == copy


def set_time(path: Path, mtime_ns: int) -> None:
    """As a disk changes bits: without a trace in the time."""
    os.utime(path, ns=(mtime_ns, mtime_ns))


@pytest.mark.parametrize("harm", HARMS.values(), ids=HARMS)
def test_field_02_a_damaged_marker_does_not_speak_for_a_base(root: Path, harm: Callable[[Path], None]) -> None:
    copy = copy_in(root)
    before = read_marker(copy)
    harm(copy / "loramux.json")
    assert prepare_base(str(root / "m"), root) == copy
    assert read_marker(copy) == before


def test_field_02_a_copy_of_an_older_version_gets_its_list_once_its_weights_fit(root: Path) -> None:
    copy = copy_in(root)
    marker = copy / "loramux.json"
    old = {key: value for key, value in json.loads(marker.read_text()).items() if key not in ("files", "sha256")}
    marker.write_text(json.dumps(old))
    assert prepare(str(root / "m"), root) == Prepared(copy)
    assert "model.safetensors" in read_marker(copy)["files"]
    marker.write_text(json.dumps(old))
    flip_bit(copy / "model.safetensors")
    assert prepare(str(root / "m"), root).damage
