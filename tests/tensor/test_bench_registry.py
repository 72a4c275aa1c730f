"""The registry that the benchmark at scale prepares is one that a server could have made."""

from __future__ import annotations

from pathlib import Path

from benchmarks.job import adapter_name
from benchmarks.registry import RANK, TENANT, fill
from loramux_server.app.maintenance import check
from loramux_server.peft.schema import check_folder
from loramux_server.store.store import Store

MODULES = {f"model.layers.{i}.mlp.{name}": (6, 10) for i in range(2) for name in ("gate_proj", "up_proj")}


def test_a_prepared_registry_is_sound_and_its_adapters_fit_the_base(tmp_path: Path) -> None:
    folders = fill(tmp_path / "state", MODULES, "base", registered=5, whole=2)
    assert check(tmp_path / "state") == ([], False)
    assert [len(check_folder(folder, MODULES, "base").modules) for folder in folders] == [4, 4]
    store = Store.open(tmp_path / "state")
    try:
        versions = store.adapters.resolve_all([adapter_name(i) for i in range(5)], TENANT)
        assert [version.rank for version in versions] == [RANK] * 5
        assert len({version.digest for version in versions}) == 5
        places = [store.blobs.local_path(version.digest) for version in versions]
        assert [str(place) for place in places[:2]] == list(folders)
        for place in places:
            assert set(check_folder(place, MODULES, "base").target_modules) <= {"gate_proj", "up_proj"}
    finally:
        store.close()
