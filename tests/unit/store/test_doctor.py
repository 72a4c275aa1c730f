"""The doctor finds what is wrong, mends what it said it would, and changes nothing otherwise."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from loramux_server.core.errors import Error
from loramux_server.core.jobs import JobRequest, JobState
from loramux_server.store.maintenance.doctor import Check, examine, repair
from loramux_server.store.records import AdapterMeta
from loramux_server.store.store import Store
from tests.adapter_files import folder_of
from tests.damage import HARMS

Make = Callable[[str], Path]


@pytest.fixture
def used(store: Store, folder: Make) -> Store:
    for name, content in (("a", "1"), ("a", "2"), ("b", "3")):
        store.adapters.publish(name, "t", folder(content), AdapterMeta(4, 8.0))
    store.datasets.put(folder("data") / "adapter_config.json", "t")
    job = store.jobs.create(JobRequest(name="a", dataset_id="ds-1", tenant="t"))
    store.jobs.move(job.id, JobState.RUNNING)
    store.jobs.create(JobRequest(name="a", dataset_id="ds-1", tenant="t"))
    return store


def sql(store: Store, statement: str) -> None:
    with store.database.write() as connection:
        connection.exec_driver_sql("PRAGMA ignore_check_constraints=ON")
        connection.exec_driver_sql(statement)


def lose_files(store: Store) -> None:
    shutil.rmtree(folder_of(store, "b", "t"))


def damage_files(store: Store) -> None:
    (folder_of(store, "b", "t") / "adapter_config.json").write_text("{} ")


def lose_dataset(store: Store) -> None:
    next((store.state.blobs / "files").glob("*/*")).unlink()


def leave_orphan(store: Store) -> None:
    place = folder_of(store, "b", "t")
    shutil.copytree(place, place.parent.parent / "00" / ("0" * 64))


BROKEN: list[tuple[Callable[[Store], None] | str, Check, str, bool]] = [
    (lose_files, Check.FILES, "b@1", True),
    (damage_files, Check.FILES, "b@1", True),
    (lose_dataset, Check.DATASET, "ds-", True),
    (leave_orphan, Check.ORPHAN, "0" * 64, True),
    ("UPDATE adapter_versions SET size_bytes = 7 WHERE id = 1", Check.SIZE, "a@1", True),
    ("UPDATE aliases SET version = 9 WHERE adapter_id = 2", Check.ALIAS, "b@latest", True),
    ("UPDATE adapter_versions SET state = 'deleted' WHERE id = 3", Check.ALIAS, "b@latest", True),
    ("UPDATE adapter_versions SET state = 'odd' WHERE id = 1", Check.VERSION, "a@1", False),
    ("UPDATE adapters SET name = '../x' WHERE id = 2", Check.NAME, "../x", False),
    ("UPDATE jobs SET state = 'odd' WHERE seq = 1", Check.JOB, "job-", False),
    ("UPDATE jobs SET state = 'succeeded', finished = 1.0 WHERE seq = 1", Check.JOB, "job-", False),
    ("UPDATE jobs SET state = 'failed' WHERE seq = 1", Check.JOB, "job-", False),
    ("UPDATE job_events SET sequence = 5 WHERE job_seq = 1 AND sequence = 2", Check.EVENTS, "job-", False),
    ("UPDATE jobs SET state = 'paused' WHERE seq = 1", Check.EVENTS, "job-", False),
]


def test_a_sound_store_has_no_findings(used: Store) -> None:
    assert examine(used.database, used.blobs) == []
    used.adapters.delete("a@1", "t")
    used.collect_orphans()
    assert examine(used.database, used.blobs) == []


@pytest.mark.parametrize(("harm", "check", "subject", "mendable"), BROKEN)
def test_each_harm_is_found_and_mended_if_it_can_be(
    used: Store, harm: Callable[[Store], None] | str, check: Check, subject: str, mendable: bool
) -> None:
    sql(used, harm) if isinstance(harm, str) else harm(used)
    found = examine(used.database, used.blobs)
    assert [f for f in found if f.check is check and f.subject.startswith(subject)]
    assert examine(used.database, used.blobs) == found  # looking changes nothing
    repair(used.database, used.blobs, found)
    left = examine(used.database, used.blobs)
    assert (left == []) is mendable, left
    assert all(not f.remedy for f in left)


def test_what_a_repair_does(used: Store, folder: Make) -> None:
    lose_files(used)
    repair(used.database, used.blobs, examine(used.database, used.blobs))
    with pytest.raises(Error) as caught:
        used.adapters.resolve("b", "t")
    assert caught.value.reason == "ADAPTER_NOT_READY"
    used.adapters.publish("b", "t", folder("3"), AdapterMeta(4, 8.0))  # the same content brings it back
    assert used.adapters.resolve("b", "t").version == 1
    assert examine(used.database, used.blobs) == []


def test_orphans_are_left_alone_while_a_server_runs(used: Store) -> None:
    leave_orphan(used)
    assert examine(used.database, used.blobs, orphans=False) == []


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
@pytest.mark.parametrize("harm", HARMS.values(), ids=HARMS)
def test_field_c_doctor_names_the_file(used: Store, name: str, harm: Callable[[Path], None]) -> None:
    harm(folder_of(used, "b", "t") / name)
    (found,) = examine(used.database, used.blobs)
    assert (found.check, found.subject) == (Check.FILES, "b@1")
    assert found.detail.startswith(name)
    repair(used.database, used.blobs, [found])
    assert used.adapters.get_version("b@1", "t").reason == f"damaged: {found.detail}"
    assert examine(used.database, used.blobs) == []


def test_field_c_doctor_leaves_a_version_whose_card_is_lost(store: Store, folder: Make) -> None:
    source = folder("weights")
    (source / "README.md").write_text("# card")
    store.adapters.publish("acme", "t", source, AdapterMeta(4, 8.0))
    (folder_of(store, "acme", "t") / "README.md").unlink()
    found = examine(store.database, store.blobs)
    assert [(f.subject, f.remedy) for f in found] == [("acme@1", "")]
    assert found[0].detail.startswith("README.md is missing")
    repair(store.database, store.blobs, found)
    assert store.adapters.resolve("acme", "t").version == 1
    store.adapters.publish("acme", "t", source, AdapterMeta(4, 8.0))
    assert examine(store.database, store.blobs) == []


def test_field_c_doctor_finds_strays_and_removes_them(used: Store) -> None:
    blobs, place = used.state.blobs, folder_of(used, "b", "t")
    shard = place.parent
    (blobs / "old").mkdir()
    (blobs / "old" / "copy.bin").write_bytes(b"x")
    (blobs / "folders" / "notes.txt").write_text("x")
    (shard / "half-a-copy").mkdir()
    (blobs / "files" / "zz").mkdir()
    shutil.copytree(place, blobs / "folders" / ("11" if shard.name != "11" else "22") / place.name)
    (place / "adapter_model.bin").write_bytes(b"x")
    found = examine(used.database, used.blobs)
    assert {f.check for f in found} == {Check.STRAY}
    assert len(found) == 6
    assert f"folders/{shard.name}/{place.name}/adapter_model.bin" in [f.subject for f in found]
    assert used.adapters.resolve("b", "t").version == 1
    repair(used.database, used.blobs, found)
    assert examine(used.database, used.blobs) == []
    assert sorted(p.name for p in place.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]


def test_field_c_doctor_makes_usable_what_was_brought_back(used: Store, tmp_path: Path) -> None:
    place = folder_of(used, "b", "t")
    shutil.copytree(place, tmp_path / "kept")
    (place / "adapter_model.safetensors").unlink()
    repair(used.database, used.blobs, examine(used.database, used.blobs))
    shutil.copytree(tmp_path / "kept", place, dirs_exist_ok=True)  # from a backup of the disk
    (found,) = examine(used.database, used.blobs)
    assert found.remedy == "make it usable again"
    repair(used.database, used.blobs, [found])
    assert used.adapters.resolve("b", "t").version == 1


def test_field_c_doctor_finds_a_folder_of_an_older_version_sound(used: Store) -> None:
    shutil.rmtree(used.state.blobs / "manifests")  # older versions wrote none
    used.blobs.entries.cache_clear()
    assert examine(used.database, used.blobs) == []
    assert used.blobs.reader.read(used.adapters.resolve("b", "t").digest)
    assert len([*(used.state.blobs / "manifests").glob("*/*")]) == 3
