"""kill -9 before and after every durable step: what was answered is there, the rest is whole or absent."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path

import pytest

from loramux_server.core.errors import Error
from loramux_server.core.jobs import JobRequest, JobState
from loramux_server.host.failpoints import VARIABLE, FailpointError, reach
from loramux_server.store.maintenance.backup import backup, restore, verify
from loramux_server.store.maintenance.doctor import examine
from loramux_server.store.records import AdapterMeta, UploadState
from loramux_server.store.store import Store
from tests.unit.store import crash_child

Make = Callable[[str], Path]

# A fork server that has the store imported: a child starts in milliseconds, and nothing of this process is in it.
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["tests.unit.store.crash_child"])


@pytest.fixture
def state(tmp_path: Path, folder: Make) -> Path:
    """A state directory with an adapter of two versions (the second current) and a queued job."""
    store = Store.open(tmp_path / "state")
    for content in ("one", "two"):
        store.adapters.publish("old", "t", folder(content), AdapterMeta(1, 1.0))
    store.jobs.create(JobRequest(name="acme", dataset_id="ds-1", tenant="t"))
    store.close()
    return tmp_path / "state"


def crash(state: Path, tmp_path: Path, action: str, failpoint: str) -> None:
    """Run an action in a process that must die at a failpoint, before it could answer."""
    work = tmp_path / "work"
    work.mkdir(exist_ok=True)
    child = _PROCESSES.Process(target=crash_child.main, args=(state, work, action, failpoint))
    child.start()
    child.join(60)
    assert child.exitcode == -9
    assert not (work / "answer").exists()


def sound(store: Store) -> None:
    """Every row has its files, whole; nothing half done is left; the database passes its own check."""
    assert not list(store.state.tmp.iterdir())
    with store.database.read() as connection:
        assert connection.exec_driver_sql("PRAGMA integrity_check").scalar() == "ok"
        assert connection.exec_driver_sql("PRAGMA foreign_key_check").all() == []
    for digest in store.adapters.referenced_digests():
        store.blobs.verify(digest)
    assert examine(store.database, store.blobs, orphans=False) == []
    store.collect_orphans()
    named = store.adapters.referenced_digests() | store.datasets.referenced_digests()
    assert set(store.blobs.digests()) == named | store.uploads.referenced_digests()
    assert examine(store.database, store.blobs) == []


def exists(store: Store, ref: str) -> bool:
    try:
        store.adapters.resolve(ref, "t")
    except Error:
        return False
    return True


@pytest.mark.parametrize(
    ("failpoint", "there"),
    [
        ("blob.written", False),
        ("blob.before_rename", False),
        ("blob.renamed", False),
        ("blob.durable", False),
        ("publish.before_commit", False),
        ("publish.committed", True),
    ],
)
def test_publish(state: Path, tmp_path: Path, folder: Make, failpoint: str, there: bool) -> None:
    crash(state, tmp_path, "publish", failpoint)
    store = Store.open(state)
    sound(store)
    assert exists(store, "acme") is there
    # the caller who got no answer tries again: one version, whichever way it went
    (tmp_path / "again").mkdir()
    (tmp_path / "again" / "adapter_model.safetensors").write_text("new")
    assert store.adapters.publish("acme", "t", tmp_path / "again", AdapterMeta(4, 8.0)).ref == "acme@1"
    assert store.adapters.resolve("old", "t").version == 2
    store.close()


@pytest.mark.parametrize(("failpoint", "current"), [("alias.before_commit", 2), ("alias.committed", 1)])
def test_alias(state: Path, tmp_path: Path, failpoint: str, current: int) -> None:
    crash(state, tmp_path, "alias", failpoint)
    store = Store.open(state)
    sound(store)
    assert store.adapters.resolve("old", "t").version == current
    store.close()


@pytest.mark.parametrize(("failpoint", "shared"), [("share.before_commit", False), ("share.committed", True)])
def test_share(state: Path, tmp_path: Path, failpoint: str, shared: bool) -> None:
    crash(state, tmp_path, "share", failpoint)
    store = Store.open(state)
    sound(store)
    assert [found.shared for found in store.adapters.list("u")[0]] == [True] * shared
    # the operator who got no answer tries again: one shared version, whichever way it went
    assert len(store.adapters.share("old@1", "t").versions) == 1
    assert store.adapters.resolve("old", "t").version == 2
    store.close()


@pytest.mark.parametrize(("failpoint", "shared"), [("unshare.before_commit", True), ("unshare.committed", False)])
def test_unshare(state: Path, tmp_path: Path, failpoint: str, shared: bool) -> None:
    store = Store.open(state)
    store.adapters.share("old@1", "t")
    store.close()
    crash(state, tmp_path, "unshare", failpoint)
    store = Store.open(state)
    sound(store)
    assert [found.shared for found in store.adapters.list("u")[0]] == [True] * shared
    assert exists(store, "old@1")
    store.close()


@pytest.mark.parametrize(("failpoint", "there"), [("alias.before_commit", True), ("alias.committed", False)])
def test_remove_alias(state: Path, tmp_path: Path, failpoint: str, there: bool) -> None:
    store = Store.open(state)
    store.adapters.set_alias("old", 1, "t", "first")
    store.close()
    crash(state, tmp_path, "unalias", failpoint)
    store = Store.open(state)
    sound(store)
    assert exists(store, "old@first") is there
    assert exists(store, "old@1")
    store.close()


@pytest.mark.parametrize(
    ("failpoint", "complete"),
    [
        ("backup.database", False),
        ("blob.written", False),
        ("blob.renamed", False),
        ("backup.blob", False),
        ("backup.before_manifest", False),
        ("backup.done", True),
    ],
)
def test_backup(state: Path, tmp_path: Path, failpoint: str, complete: bool) -> None:
    crash(state, tmp_path, "backup", failpoint)
    store = Store.open(state)
    sound(store)
    folder = tmp_path / "work" / "backup"
    if complete:
        assert verify(folder)[1] == []
    else:
        with pytest.raises(Error) as caught:
            verify(folder)
        assert caught.value.reason == "NO_BACKUP"
    store.close()


@pytest.mark.parametrize(
    ("failpoint", "complete"),
    [("blob.durable", False), ("backup.blob", False), ("restore.before_rename", False), ("restore.done", True)],
)
def test_restore(state: Path, tmp_path: Path, failpoint: str, complete: bool) -> None:
    work = tmp_path / "work"
    work.mkdir()
    backup(state, work / "backup")
    crash(state, tmp_path, "restore", failpoint)
    if not complete:
        with pytest.raises(Error) as caught:  # half a store is not taken for one
            Store.open(work / "new")
        assert caught.value.reason == "DATABASE_MISSING"
        restore(work / "backup", work / "new")
    store = Store.open(work / "new")
    sound(store)
    assert (exists(store, "old@1"), store.adapters.resolve("old", "t").version) == (True, 2)
    store.close()


@pytest.mark.parametrize(
    ("failpoint", "there"),
    [
        ("delete.before_commit", True),
        ("delete.committed", False),
        ("collect.before_rename", False),
        ("collect.renamed", False),
    ],
)
def test_delete_and_collect(state: Path, tmp_path: Path, failpoint: str, there: bool) -> None:
    crash(state, tmp_path, "delete", failpoint)
    store = Store.open(state)
    sound(store)
    assert exists(store, "old@1") is there
    assert exists(store, "old@2") is there
    assert len(list(store.blobs.digests())) == (2 if there else 0)
    store.close()


@pytest.mark.parametrize(
    ("failpoint", "there"),
    [
        ("dataset.delete.before_commit", True),
        ("dataset.delete.committed", False),
        ("collect.before_rename", False),
        ("collect.renamed", False),
    ],
)
def test_delete_a_dataset(state: Path, tmp_path: Path, failpoint: str, there: bool) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_text("rows")
    store = Store.open(state)
    dataset = store.datasets.put(source, "t")
    store.close()
    crash(state, tmp_path, "delete a dataset", failpoint)
    store = Store.open(state)
    assert store.datasets.list("t")[0] == ((dataset,) if there else ())
    if there:
        store.datasets.delete(dataset.id, "t")
    sound(store)
    store.close()


@pytest.fixture
def uploading(state: Path, tmp_path: Path) -> str:
    """An upload of eight bytes, of which four are there."""
    source = tmp_path / "part"
    source.write_text("rows")
    store = Store.open(state)
    upload = store.uploads.create("t", "rows.jsonl", 8, seconds=60, most=9).id
    store.uploads.add_part(upload, "t", source, most=9)
    store.close()
    return upload


@pytest.mark.parametrize(
    ("failpoint", "there"),
    [
        ("blob.written", False),
        ("blob.renamed", False),
        ("upload.part.before_commit", False),
        ("upload.part.committed", True),
    ],
)
def test_a_part(state: Path, tmp_path: Path, failpoint: str, there: bool) -> None:
    store = Store.open(state)
    upload = store.uploads.create("t", "rows.jsonl", 8, seconds=60, most=9)
    store.close()
    crash(state, tmp_path, "add a part", failpoint)
    store = Store.open(state)
    sound(store)
    assert store.uploads.get(upload.id, "t") == upload
    assert len(store.uploads.parts(upload.id, "t")) == there
    # the client who got no answer sends it again: one part, whichever way it went
    (tmp_path / "again").write_text("rows")
    part = store.uploads.add_part(upload.id, "t", tmp_path / "again", most=9)
    assert store.uploads.parts(upload.id, "t") == {part.id: part}
    store.close()


@pytest.mark.parametrize(
    ("failpoint", "complete"),
    [("blob.durable", False), ("dataset.before_commit", False), ("dataset.committed", True)],
)
def test_complete_an_upload(state: Path, tmp_path: Path, uploading: str, failpoint: str, complete: bool) -> None:
    crash(state, tmp_path, "complete", failpoint)
    store = Store.open(state)
    sound(store)
    upload, parts = store.uploads.get(uploading, "t"), store.uploads.parts(uploading, "t")
    datasets, _ = store.datasets.list("t")
    assert (upload.state is UploadState.COMPLETED, len(parts), len(datasets)) == (complete, not complete, complete)
    assert [dataset.id for dataset in datasets] == ([upload.dataset_id] if complete else [])
    store.close()


@pytest.mark.parametrize(
    ("failpoint", "pending"),
    [("upload.cancel.before_commit", True), ("upload.cancel.committed", False), ("collect.renamed", False)],
)
def test_cancel_an_upload(state: Path, tmp_path: Path, uploading: str, failpoint: str, pending: bool) -> None:
    crash(state, tmp_path, "cancel", failpoint)
    store = Store.open(state)
    sound(store)
    assert store.uploads.get(uploading, "t").state is (UploadState.PENDING if pending else UploadState.CANCELLED)
    assert len(store.uploads.parts(uploading, "t")) == pending
    store.close()


@pytest.mark.parametrize(
    ("failpoint", "jobs"), [("job.folder_kept", 1), ("job.create.before_commit", 1), ("job.create.committed", 2)]
)
def test_create_job(state: Path, tmp_path: Path, failpoint: str, jobs: int) -> None:
    crash(state, tmp_path, "create", failpoint)
    store = Store.open(state)
    sound(store)
    assert len(store.jobs.list("t")[0]) == jobs
    assert len(list(store.state.jobs.iterdir())) == 1
    store.sweep_job_folders()
    (job,) = [job for job in store.jobs.list("t")[0] if job.request.idempotency_key] or [None]
    # A job has its folder, and a folder without a job is swept.
    assert [place.name for place in store.state.jobs.iterdir()] == ([job.id] if job else [])
    new = JobRequest(name="acme", dataset_id="ds-1", tenant="t", idempotency_key="k")
    again = [store.create_job(new, {}, (), store.state.new_tmp("job")).id for _ in range(2)]
    assert again == ([job.id] * 2 if job else again[:1] * 2)
    assert len(store.jobs.list("t")[0]) == 2  # not lost, not doubled
    assert [place.name for place in store.state.jobs.iterdir()] == again[:1]
    store.close()


@pytest.mark.parametrize(
    ("failpoint", "state_after"),
    [
        ("job.moved", JobState.QUEUED),
        ("job.move.before_commit", JobState.QUEUED),
        ("job.move.committed", JobState.RUNNING),
        ("blob.durable", JobState.PUBLISHING),
        ("publish.before_commit", JobState.PUBLISHING),
        ("publish.committed", JobState.SUCCEEDED),
    ],
)
def test_a_job_to_its_end(state: Path, tmp_path: Path, failpoint: str, state_after: JobState) -> None:
    crash(state, tmp_path, "job", failpoint)
    store = Store.open(state)
    sound(store)
    job = store.jobs.list("t")[0][0]
    assert job.state is state_after
    assert exists(store, "acme") is (state_after is JobState.SUCCEEDED)
    assert bool(job.adapter) is (state_after is JobState.SUCCEEDED)
    sequence = [e.sequence for e in store.jobs.events(job.id)]
    assert sequence == list(range(1, len(sequence) + 1))
    store.jobs.requeue_interrupted()
    assert store.jobs.get(job.id).state is (
        JobState.SUCCEEDED if state_after is JobState.SUCCEEDED else JobState.QUEUED
    )
    store.close()


def test_failpoints_that_raise(store: Store, folder: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    for failpoint in ("blob.written", "blob.before_rename", "blob.renamed", "blob.durable"):
        monkeypatch.setenv(VARIABLE, f"{failpoint}:raise")
        with pytest.raises(Error):
            store.adapters.publish("acme", "t", folder("a"), AdapterMeta(1, 1.0))
        monkeypatch.delenv(VARIABLE)
        assert not exists(store, "acme")
        sound(store)


def test_a_failpoint_does_only_what_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    reach("a")
    monkeypatch.setenv(VARIABLE, "b:raise,c:what")
    reach("a")
    with pytest.raises(FailpointError):
        reach("b")
    with pytest.raises(ValueError, match="c:what"):
        reach("c")
