"""Run by test_faults.py with faults.c preloaded: does a thing again and again, a later step failing each time."""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from loramux_server.core.errors import Code, Error
from loramux_server.core.jobs import JobRequest, JobState
from loramux_server.store.maintenance.backup import backup, restore, verify
from loramux_server.store.maintenance.doctor import examine
from loramux_server.store.records import AdapterMeta
from loramux_server.store.store import Store

FAULTS = ctypes.CDLL(None)
FAULTS.fault_arm.argtypes = [ctypes.c_char_p, ctypes.c_long, ctypes.c_int]
META = AdapterMeta(4, 8.0)


class Round:
    """A fresh copy of a state directory (adapter ``old`` of two versions, a job ready to publish), opened."""

    def __init__(self, template: Path, root: Path) -> None:
        self.root = root
        shutil.copytree(template, root / "state", symlinks=True)
        self.store = Store.open(root / "state")
        self.source = root / "source"
        self.source.mkdir()
        (self.source / "adapter_config.json").write_text("{}")
        (self.source / "adapter_model.safetensors").write_text("new")

    def exists(self, ref: str) -> bool:
        try:
            self.store.adapters.resolve(ref, "t")
        except Error as error:
            if error.code is not Code.NOT_FOUND:
                raise
            return False
        return True


def publish(r: Round) -> None:
    record = r.store.adapters.publish("new", "t", r.source, META)
    assert record.ref == "new@1"


def published(r: Round, done: bool) -> None:
    assert r.exists("new") is done


def alias(r: Round) -> None:
    r.store.adapters.set_alias("old", 1, "t")


def moved(r: Round, done: bool) -> None:
    assert r.store.adapters.resolve("old", "t").version == (1 if done else 2)


def delete(r: Round) -> None:
    if r.exists("old"):
        r.store.adapters.delete("old", "t")
    r.store.collect_orphans()


def deleted(r: Round, done: bool) -> None:
    assert r.exists("old@1") == r.exists("old@2")
    if done:
        assert not r.exists("old@1")
        assert not set(r.store.blobs.digests()) - r.store.datasets.referenced_digests()


def finish(r: Round) -> None:
    job = r.store.jobs.list("t")[0][0]
    r.store.publish_job_result(job.id, r.source, META)


def finished(r: Round, done: bool) -> None:
    state = r.store.jobs.list("t")[0][0].state
    assert state is (JobState.SUCCEEDED if r.exists("job") else JobState.PUBLISHING)
    if done:
        assert state is JobState.SUCCEEDED


def back_up(r: Round) -> None:
    shutil.rmtree(r.root / "backup", ignore_errors=True)
    backup(r.root / "state", r.root / "backup")


def backed_up(r: Round, done: bool) -> None:
    try:
        assert verify(r.root / "backup")[1] == []
    except Error as error:
        if done or error.reason != "NO_BACKUP":
            raise


def bring_back(r: Round) -> None:
    if not (r.root / "copy").exists():
        FAULTS.fault_disarm()  # only the restore is tried
        backup(r.root / "state", r.root / "copy")
        FAULTS.fault_arm(bytes(r.root), *ARMED)
    if not (r.root / "new" / "loramux.db").exists():
        restore(r.root / "copy", r.root / "new")


def brought_back(r: Round, done: bool) -> None:
    if done:
        store = Store.open(r.root / "new")
        assert store.adapters.resolve("old", "t").version == 2
        assert examine(store.database, store.blobs) == []
        store.close()


ACTIONS: dict[str, tuple[Callable[[Round], None], Callable[[Round, bool], None]]] = {
    "publish": (publish, published),
    "alias": (alias, moved),
    "delete": (delete, deleted),
    "job": (finish, finished),
    "backup": (back_up, backed_up),
    "restore": (bring_back, brought_back),
}
ARMED = (0, 0)


def prepare(template: Path) -> None:
    store = Store.open(template)
    source = template.parent / "first"
    source.mkdir()
    for content in ("one", "two"):
        (source / "adapter_model.safetensors").write_text(content)
        store.adapters.publish("old", "t", source, META)
    dataset = store.datasets.put(source / "adapter_model.safetensors", "t")
    job = store.jobs.create(JobRequest(name="job", dataset_id=dataset.id, tenant="t"))
    for state in (JobState.RUNNING, JobState.EVALUATING, JobState.PUBLISHING):
        store.jobs.move(job.id, state)
    store.close()


def main(root: Path, action: str, number: int) -> None:
    """Fail step 1, 2, 3, ... of ``action`` until it has no more steps; prints how many there were."""
    global ARMED
    act, check = ACTIONS[action]
    prepare(root / "template")
    expected = Code.RESOURCE_EXHAUSTED if number == 28 else Code.UNAVAILABLE
    step = 0
    while True:
        step += 1
        r = Round(root / "template", root / f"round-{step}")
        failed: Error | None = None
        ARMED = (step, number)
        FAULTS.fault_arm(bytes(r.root), *ARMED)
        try:
            act(r)
        except Error as error:
            failed = error
        steps = FAULTS.fault_disarm()
        where = f"{action}, step {step}: {failed!r}"
        assert failed is None or failed.code in (expected, Code.UNAVAILABLE, Code.FAILED_PRECONDITION), where
        assert failed is None or str(root) not in failed.message or failed.code is Code.FAILED_PRECONDITION, where
        check(r, failed is None)
        # The server that met the failure goes on: the same store does it now, once.
        if failed is not None:
            try:
                act(r)
            except Error as error:
                raise AssertionError(f"{where}: and then {error.message}") from error
        check(r, True)
        r.store.close()
        r.store = Store.open(r.root / "state")
        check(r, True)
        r.store.collect_orphans()
        assert examine(r.store.database, r.store.blobs) == [], where
        assert not list(r.store.state.tmp.iterdir())
        r.store.close()
        shutil.rmtree(r.root)
        if steps < step:
            break
    print(step - 1)


if __name__ == "__main__":
    os.environ.pop("LD_PRELOAD")
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
