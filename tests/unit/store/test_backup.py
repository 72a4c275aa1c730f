"""Backups of a store in use, and stores made from them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from loramux_server.core.errors import Code, Error
from loramux_server.host.failpoints import VARIABLE
from loramux_server.store.maintenance import backup as backups
from loramux_server.store.maintenance.backup import MANIFEST, backup, read_manifest, restore, verify
from loramux_server.store.records import AdapterMeta
from loramux_server.store.store import Store
from tests.adapter_files import folder_of
from tests.damage import HARMS

Make = Callable[[str], Path]


@pytest.fixture
def used(store: Store, folder: Make) -> Store:
    """An open store with two adapters of three versions, and a dataset."""
    for name, content in (("a", "1"), ("a", "2"), ("b", "3")):
        store.adapters.publish(name, "t", folder(content), AdapterMeta(4, 8.0))
    store.adapters.set_alias("a", 1, "t", "old")
    data = folder("data") / "adapter_config.json"
    store.datasets.put(data, "t", filename="d.jsonl")
    return store


def contents(store: Store) -> dict[str, str]:
    found = {}
    for record in store.adapters.list("t")[0]:
        for version in record.versions:
            path = folder_of(store, version.ref, "t")
            found[version.ref] = (path / "adapter_model.safetensors").read_text()
    return found


def test_a_store_comes_back_as_it_was(used: Store, tmp_path: Path) -> None:
    made = backup(used.state.path, tmp_path / "backup")  # the store is open: a server holds it
    assert len(made.blobs) == 4
    assert sorted(p.name for p in (tmp_path / "backup").iterdir()) == ["blobs", "loramux.db", "manifest.json"]
    assert verify(tmp_path / "backup") == (made, [])
    restore(tmp_path / "backup", tmp_path / "new")
    again = Store.open(tmp_path / "new")
    assert contents(again) == contents(used) == {"a@1": "1", "a@2": "2", "b@1": "3"}
    assert again.adapters.get("a", "t").aliases == {"latest": 2, "old": 1}
    assert again.adapters.publish("a", "t", folder_of(again, "b", "t"), AdapterMeta(1, 1.0)).version == 3
    again.close()


def test_what_is_not_committed_is_not_in_it(used: Store, tmp_path: Path, folder: Make) -> None:
    with used.database.write() as connection:
        connection.exec_driver_sql("UPDATE adapters SET name = 'halfway' WHERE name = 'b'")
        backup(used.state.path, tmp_path / "backup")
    used.adapters.publish("later", "t", folder("later"), AdapterMeta(1, 1.0))
    restore(tmp_path / "backup", tmp_path / "new")
    again = Store.open(tmp_path / "new")
    assert [r.name for r in again.adapters.list("t")[0]] == ["a", "b"]
    again.close()


def test_a_version_that_goes_while_it_is_copied(used: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new snapshot is taken; the backup is sound and holds nothing that no row names."""
    gone = used.adapters.resolve("a@1", "t").digest

    def delete_meanwhile(text: str) -> None:
        if "files, 1" in text and used.adapters.get("a", "t").version(1):
            used.adapters.delete("a@1", "t")
            used.adapters.delete("b", "t")
            used.collect_orphans()

    made = backup(used.state.path, tmp_path / "backup", delete_meanwhile)
    assert gone not in made.blobs
    assert len(made.blobs) == 2
    assert verify(tmp_path / "backup") == (made, [])


def test_missing_or_damaged_files_are_told_and_no_backup_is_made(used: Store, tmp_path: Path) -> None:
    path = folder_of(used, "b", "t") / "adapter_model.safetensors"
    path.write_text("bitrot")
    with pytest.raises(Error) as caught:
        backup(used.state.path, tmp_path / "backup")
    assert caught.value.code is Code.DATA_LOSS
    with pytest.raises(Error) as caught:
        verify(tmp_path / "backup")
    assert caught.value.reason == "NO_BACKUP"


def test_only_into_an_empty_folder_and_only_from_a_store(used: Store, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    for source, target in ((used.state.path, tmp_path / "full"), (tmp_path / "nothing", tmp_path / "new")):
        with pytest.raises(Error) as caught:
            backup(source, target)
        assert caught.value.code is Code.FAILED_PRECONDITION
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["mine"]


def damage_blob(folder: Path) -> None:
    next((folder / "blobs" / "folders").glob("*/*/adapter_model.safetensors")).write_text("bitrot")


def lose_blob(folder: Path) -> None:
    shutil.rmtree(next((folder / "blobs" / "folders").glob("*/*")))


def damage_database(folder: Path) -> None:
    data = bytearray((folder / "loramux.db").read_bytes())
    data[-1] ^= 1
    (folder / "loramux.db").write_bytes(data)


def lose_manifest(folder: Path) -> None:
    (folder / MANIFEST).unlink()


def newer(folder: Path) -> None:
    found = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**found, "schema": "9999"}))


@pytest.mark.parametrize("harm", [damage_blob, lose_blob, damage_database, lose_manifest, newer])
def test_a_damaged_backup_restores_nothing(used: Store, tmp_path: Path, harm: Callable[[Path], None]) -> None:
    backup(used.state.path, tmp_path / "backup")
    harm(tmp_path / "backup")
    with pytest.raises(Error):
        restore(tmp_path / "backup", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_restore_overwrites_nothing(used: Store, tmp_path: Path) -> None:
    backup(used.state.path, tmp_path / "backup")
    other = tmp_path / "other"
    Store.open(other).close()
    before = (other / "loramux.db").read_bytes()
    with pytest.raises(Error, match="has a database"):
        restore(tmp_path / "backup", other)
    with pytest.raises(Error, match="in use"):
        restore(tmp_path / "backup", used.state.path)
    assert (other / "loramux.db").read_bytes() == before


@pytest.mark.parametrize("point", ["backup.blob", "restore.before_rename", "blob.renamed"])
def test_an_interrupted_restore_is_begun_again(
    used: Store, tmp_path: Path, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    backup(used.state.path, tmp_path / "backup")
    monkeypatch.setenv(VARIABLE, f"{point}:raise")
    with pytest.raises(Error):
        restore(tmp_path / "backup", tmp_path / "new")
    monkeypatch.delenv(VARIABLE)
    if (tmp_path / "new" / "blobs" / "folders").exists():
        with pytest.raises(Error) as caught:  # not taken for an empty store meanwhile
            Store.open(tmp_path / "new")
        assert caught.value.reason == "DATABASE_MISSING"
    restore(tmp_path / "backup", tmp_path / "new")
    again = Store.open(tmp_path / "new")
    assert contents(again) == contents(used)
    again.close()


def test_a_manifest_is_read_with_care(tmp_path: Path) -> None:
    for text in ("", "[]", "{}", '{"format": 1}', '{"format": 1, "blobs": []}', "\x00"):
        (tmp_path / MANIFEST).write_text(text)
        with pytest.raises(Error):
            read_manifest(tmp_path)
    assert backups.FORMAT == 1


@pytest.mark.parametrize("harm", HARMS.values(), ids=HARMS)
def test_field_02_a_backup_names_damage_and_goes_on_without_what_is_quarantined(
    used: Store, tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    version = used.adapters.resolve_all(["a@1"], "t")[0]
    harm(used.blobs.local_path(version.digest) / "adapter_model.safetensors")
    with pytest.raises(Error, match=r"adapter_model\.safetensors") as caught:
        backup(used.state.path, tmp_path / "refused")
    assert caught.value.code is Code.DATA_LOSS
    used.adapters.files.mark_damaged(version.digest, "bitrot")
    made = backup(used.state.path, tmp_path / "kept")
    assert version.digest not in made.blobs
    assert verify(tmp_path / "kept")[1] == []
    restore(tmp_path / "kept", tmp_path / "new")
    with closing(Store.open(tmp_path / "new")) as again:
        with pytest.raises(Error, match="bitrot"):
            again.adapters.resolve("a@1", "t")
        assert again.blobs.reader.read(again.adapters.resolve("a@2", "t").digest)
