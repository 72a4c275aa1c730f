"""Run by test_crash.py in a process of its own: does one durable thing and dies at a failpoint on the way."""

from __future__ import annotations

import os
from pathlib import Path

import sqlalchemy as sa

from loramux_server.core.jobs import JobRequest, JobState
from loramux_server.host.failpoints import VARIABLE
from loramux_server.store.maintenance.backup import backup, restore
from loramux_server.store.records import AdapterMeta
from loramux_server.store.schema import uploads
from loramux_server.store.store import Store


def main(state: Path, work: Path, action: str, failpoint: str) -> None:
    """Do ``action`` and write the answer to ``work/answer``; the process ends before, if the failpoint is reached."""
    os.environ[VARIABLE] = f"{failpoint}:kill"
    if action == "restore":
        (work / "answer").write_text(str(restore(work / "backup", work / "new").created))
        return
    (work / "answer").write_text(act(Store.open(state), work / "source", action))


def uploads_of(store: Store) -> list[str]:
    """The ids of all uploads in parts."""
    with store.database.read() as connection:
        return list(connection.scalars(sa.select(uploads.c.id)))


def act(store: Store, source: Path, action: str) -> str:
    """One durable thing; returns what it answered."""
    source.mkdir()
    (source / "adapter_model.safetensors").write_text("new")
    if action == "publish":
        return store.adapters.publish("acme", "t", source, AdapterMeta(4, 8.0)).ref
    if action == "alias":
        return store.adapters.set_alias("old", 1, "t").ref
    if action == "share":
        return store.adapters.share("old@1", "t").name
    if action == "unshare":
        return str(len(store.adapters.unshare("old", "t")))
    if action == "delete":
        store.adapters.delete("old", "t")
        return str(store.collect_orphans())
    if action == "unalias":
        store.adapters.remove_alias("old", "t", "first")
        return "removed"
    if action == "delete a dataset":
        (dataset,) = store.datasets.list("t")[0]
        store.datasets.delete(dataset.id, "t")
        return str(store.collect_orphans())
    if action == "add a part":
        (source / "part").write_text("rows")
        (upload,) = uploads_of(store)
        return store.uploads.add_part(upload, "t", source / "part", most=9).id
    if action == "complete":
        (source / "whole").write_text("rowsrows")
        (upload,) = uploads_of(store)
        return store.datasets.put(source / "whole", "t", upload_id=upload).id
    if action == "cancel":
        (upload,) = uploads_of(store)
        store.uploads.cancel(upload, "t")
        return str(store.collect_orphans())
    if action == "backup":
        return str(backup(store.state.path, source.parent / "backup").created)
    if action == "create":
        made = store.state.new_tmp("job")
        (made / "rows").write_text("rows")
        request = JobRequest(name="acme", dataset_id="ds-1", tenant="t", idempotency_key="k")
        return store.create_job(request, {}, (), made).id
    (job,) = store.jobs.list(states=[JobState.QUEUED])[0]
    for state in (JobState.RUNNING, JobState.EVALUATING, JobState.PUBLISHING):
        store.jobs.move(job.id, state)
    return store.publish_job_result(job.id, source, AdapterMeta(4, 8.0))[0].ref
