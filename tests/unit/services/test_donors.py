"""What a job was created from stays until the job is final, although nobody else can see it any more."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from loramux_server.app.maintenance import check
from loramux_server.core.backend import EngineInfo
from loramux_server.core.callers.principal import LOCAL
from loramux_server.core.errors import Code, Error
from loramux_server.core.jobs import JobState
from loramux_server.core.types import StackItem
from loramux_server.store.maintenance.backup import backup, restore, verify
from loramux_server.store.maintenance.doctor import Check, examine
from loramux_server.store.records import AdapterMeta, VersionRecord
from loramux_server.store.store import Store
from loramux_server.text import TextTokenizer

from .adapter_files import write_adapter
from .test_training_jobs import Server

Publish = Callable[..., VersionRecord]


@pytest.fixture
def publish(info: EngineInfo, tmp_path: Path) -> Publish:
    """``publish(store, name, b)``: a version whose content follows from ``b``."""

    def make(store: Store, name: str, b: float, owner: str = "default") -> VersionRecord:
        folder = tmp_path / f"{name}-{b}"
        if not folder.exists():
            write_adapter(folder, info, b=b)
        return store.adapters.publish(name, owner, folder, AdapterMeta(2, 4.0))

    return make


@pytest.fixture
def server(store: Store, text: TextTokenizer, info: EngineInfo) -> Server:
    return Server.over(store, text, info)


async def test_a_queued_job_keeps_its_donors_over_a_restart(
    tmp_path: Path, text: TextTokenizer, info: EngineInfo, publish: Publish
) -> None:
    with closing(Store.open(tmp_path / "other")) as store:
        server = Server.over(store, text, info)
        below, start = publish(store, "below", 1.0), publish(store, "start", 2.0)
        gone = publish(store, "unrelated", 3.0)
        job = await server.job(on_top_of=((StackItem("below"),),), init_from="start", given=frozenset())
        for name in ("below", "start", "unrelated"):
            store.adapters.delete(name, "default")
        assert store.collect_orphans() == (gone.digest,)
        publish(store, "below", 4.0)  # of the same name, and nothing to the job
    with closing(Store.open(tmp_path / "other")) as store:
        assert store.collect_orphans() == ()
        assert store.orphans() == frozenset()
        assert examine(store.database, store.blobs) == []
        server = Server.over(store, text, info)
        async with server.working():
            await server.finished(job)
        assert (await server.service.get_job(job.id, LOCAL)).state is JobState.SUCCEEDED
        (command,) = server.backend.trained
        assert [e.adapter.digest for e in command.stacks[0].entries] == [below.digest]
        assert command.init is not None
        assert command.init.digest == start.digest
        assert set(store.collect_orphans()) == {below.digest, start.digest}


async def test_a_running_job_keeps_the_version_that_it_would_replace(
    server: Server, store: Store, publish: Publish
) -> None:
    current = publish(store, "acme", 1.0)
    server.training.at, server.training.hang = 2, True
    job = await server.job()
    async with server.working():
        await asyncio.wait_for(server.training.waiting.wait(), 20)
        store.adapters.delete("acme", "default")
        assert store.collect_orphans() == ()
        assert store.blobs.holds(current.digest)
        await server.service.cancel_job(job.id, LOCAL)
        await asyncio.wait_for(server.training.gone.wait(), 20)
    assert store.collect_orphans() == (current.digest,)


@pytest.mark.parametrize("ending", [JobState.CANCELLED, JobState.FAILED])
async def test_however_a_job_ends_it_lets_go(server: Server, store: Store, publish: Publish, ending: JobState) -> None:
    below = publish(store, "below", 1.0)
    job = await server.job(on_top_of=((StackItem("below"),),))
    await server.service.pause_job(job.id, LOCAL)
    store.adapters.delete("below", "default")
    assert store.collect_orphans() == ()  # it may go on
    store.jobs.move(job.id, ending, error=Error(Code.INTERNAL, "x") if ending is JobState.FAILED else None)
    assert store.collect_orphans() == (below.digest,)


async def test_a_deleted_donor_is_only_the_jobs(server: Server, store: Store, publish: Publish) -> None:
    publish(store, "below", 1.0)
    await server.job(on_top_of=((StackItem("below"),),))
    store.adapters.delete("below", "default")
    for use in (lambda: store.adapters.resolve("below@1", "default"), lambda: store.adapters.get("below", "default")):
        with pytest.raises(Error) as caught:
            use()
        assert caught.value.code is Code.NOT_FOUND


async def test_a_quarantined_donor_is_not_trained_on(server: Server, store: Store, publish: Publish) -> None:
    publish(store, "below", 1.0)
    job = await server.job(on_top_of=((StackItem("below"),),))
    store.adapters.files.quarantine(store.adapters.get_version("below@1", "default").digest, "bitrot")
    async with server.working():
        await server.finished(job)
    failed = await server.service.get_job(job.id, LOCAL)
    assert failed.state is JobState.FAILED
    assert "bitrot" in failed.error


async def test_backup_and_doctor_know_the_donors(
    server: Server, store: Store, publish: Publish, tmp_path: Path
) -> None:
    below = publish(store, "below", 1.0)
    job = await server.job(on_top_of=((StackItem("below"),),))
    store.adapters.delete("below", "default")
    assert below.digest in backup(store.state.path, tmp_path / "backup").blobs
    assert verify(tmp_path / "backup")[1] == []
    restore(tmp_path / "backup", tmp_path / "new")
    assert check(tmp_path / "new") == ([], False)
    assert store.blobs.collect_orphans(lambda: set(store.blobs.digests()) - {below.digest}) == (below.digest,)
    (found,) = examine(store.database, store.blobs)
    assert (found.check, found.subject) == (Check.JOB, job.id)
    assert "below@1" in found.detail
