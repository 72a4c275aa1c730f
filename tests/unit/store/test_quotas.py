"""Quotas of what is stored and trained: kept in the database, checked where the row is written."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from loramux_server.core.callers.keys import ApiKey
from loramux_server.core.callers.principal import Scope
from loramux_server.core.callers.quota import Bound, Limit, Quota
from loramux_server.core.errors import Code, Error
from loramux_server.core.jobs import JobRequest, JobState, TrainEvent, TrainEventType
from loramux_server.store.jobs.table import JobTable
from loramux_server.store.quotas import QuotaTable
from loramux_server.store.records import SHARED, AdapterMeta
from loramux_server.store.store import Store

Make = Callable[[str], Path]
META = AdapterMeta(rank=4, alpha=8.0)
NOON, DAY = 1_800_014_400.0, 86_400.0


def refused(call: Callable[[], object]) -> Error:
    with pytest.raises(Error) as caught:
        call()
    assert (caught.value.code, caught.value.reason) == (Code.RESOURCE_EXHAUSTED, "QUOTA_EXCEEDED")
    return caught.value


def dataset(store: Store, folder: Path, content: str, tenant: str = "t") -> str:
    source = folder / "rows.jsonl"
    source.write_text(content)
    return store.datasets.put(source, tenant).id


def test_a_tenant_has_its_own_limits_else_those_of_everybody(store: Store) -> None:
    store.quotas.set("*", {"adapters": 5, "datasets": 7})
    store.quotas.set("tenant:acme", {"adapters": 9})
    with pytest.raises(Error, match="key 'k1' not found"):
        store.quotas.set("key:k1", {"concurrent": 1})
    store.keys.create(ApiKey("k1", "s" * 43), "pine", [Scope.INFER])
    assert store.quotas.set("key:k1", {"concurrent": 1}) == Quota(concurrent=1)
    quotas = store.quotas.read()
    assert quotas.tenant("acme") == Quota(adapters=9, datasets=7)
    assert quotas.tenant("pine") == Quota(adapters=5, datasets=7)
    assert quotas.bounds("pine", "k1") == (
        Bound("tenant:pine", Quota(adapters=5, datasets=7)),
        Bound("key:k1", Quota(concurrent=1)),
    )
    assert quotas.bounds("pine", "k2") == quotas.bounds("pine")


def test_limits_are_changed_one_by_one_and_servers_see_that_they_were(store: Store) -> None:
    seen, quotas = store.quotas.changed(-1)
    assert quotas.by_subject == {}
    store.quotas.set("tenant:acme", {"adapters": 5})
    assert store.quotas.set("tenant:acme", {"datasets": 2}) == Quota(adapters=5, datasets=2)
    seen, quotas = store.quotas.changed(seen)
    assert quotas.by_subject == {"tenant:acme": Quota(adapters=5, datasets=2)}
    assert store.quotas.changed(seen) == (seen, type(quotas)({}))
    store.quotas.set("tenant:acme", {"adapters": None, "datasets": None})
    later, quotas = store.quotas.changed(seen)
    assert later > seen
    assert quotas.by_subject == {}


@pytest.mark.parametrize("value", [-1, 2**53 + 1])
def test_a_limit_out_of_bounds_is_refused(store: Store, value: int) -> None:
    with pytest.raises(Error, match="from 0 to 2") as caught:
        store.quotas.set("*", {"concurrent": value})
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert store.quotas.read().by_subject == {}


@pytest.mark.parametrize("limit", ["stored_bytes", "adapters", "datasets", "jobs_queued", "jobs_running"])
def test_what_belongs_to_the_tenant_is_no_limit_of_a_key(store: Store, limit: Limit) -> None:
    with pytest.raises(Error, match="set it with --tenant"):
        store.quotas.set("key:k1", {limit: 3})


def test_adapters_are_counted_by_name(store: Store, folder: Make) -> None:
    store.quotas.set("tenant:t", {"adapters": 1})
    store.adapters.publish("one", "t", folder("a"), META)
    store.adapters.publish("one", "t", folder("b"), META)
    error = refused(lambda: store.adapters.publish("two", "t", folder("c"), META))
    assert error.message == "the quota of tenant:t is reached: adapters is limited to 1: 1 in use, 1 more asked for"
    assert error.retry_after is None
    with pytest.raises(Error, match="not found"):
        store.adapters.get("two", "t")
    store.adapters.publish("two", "u", folder("c"), META)
    store.adapters.delete("one", "t")
    store.adapters.publish("two", "t", folder("c"), META)
    refused(lambda: store.adapters.publish("one", "t", folder("a"), META))


def test_bytes_are_those_of_adapters_and_datasets_together(store: Store, folder: Make, tmp_path: Path) -> None:
    size = store.adapters.publish("one", "t", folder("a"), META).size_bytes
    store.quotas.set("tenant:t", {"stored_bytes": size + 10})
    dataset(store, tmp_path, "x" * 9)
    error = refused(lambda: dataset(store, tmp_path, "y" * 2))
    assert f"stored bytes is limited to {size + 10}: {size + 9} in use, 2 more asked for" in error.message
    refused(lambda: store.adapters.publish("one", "t", folder("b"), META))
    store.adapters.publish("one", "t", folder("a"), META)  # what is stored already takes nothing more
    dataset(store, tmp_path, "x" * 9)
    dataset(store, tmp_path, "y")
    store.adapters.delete("one", "t")
    gone = dataset(store, tmp_path, "z" * size)
    refused(lambda: dataset(store, tmp_path, "y" * 2))
    store.datasets.delete(gone, "t")
    dataset(store, tmp_path, "y" * size)


def test_uploads_at_once_do_not_slip_under_a_limit_together(store: Store, tmp_path: Path) -> None:
    store.quotas.set("*", {"datasets": 3})
    ready, ended = threading.Barrier(8), list[str]()

    def upload(n: int) -> None:
        source = tmp_path / f"{n}.jsonl"
        source.write_text(f"{n}")
        ready.wait()
        try:
            store.datasets.put(source, "t")
            ended.append("stored")
        except Error as error:
            ended.append(error.reason)

    threads = [threading.Thread(target=upload, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(ended) == ["QUOTA_EXCEEDED"] * 5 + ["stored"] * 3
    assert len(store.datasets.list("t")[0]) == 3


def test_what_the_operator_shares_is_nobodys_quota(store: Store, folder: Make) -> None:
    store.quotas.set("*", {"adapters": 0, "stored_bytes": 0})
    store.adapters.publish("house", SHARED, folder("a"), META)
    refused(lambda: store.adapters.publish("mine", "t", folder("a"), META))


def test_paused_jobs_count_as_queued_so_that_pausing_makes_no_room(store: Store) -> None:
    store.quotas.set("tenant:t", {"jobs_queued": 2})
    first, second = (store.jobs.create(JobRequest("a", "ds", "t")) for _ in range(2))
    store.jobs.move(first.id, JobState.PAUSED)
    refused(lambda: store.jobs.create(JobRequest("a", "ds", "t")))
    store.jobs.create(JobRequest("a", "ds", "u"))
    store.jobs.move(first.id, JobState.QUEUED)
    store.jobs.move(second.id, JobState.CANCELLED)
    store.jobs.create(JobRequest("a", "ds", "t"))


def test_a_failed_job_is_not_resumed_past_the_limit(store: Store) -> None:
    failed = store.jobs.create(JobRequest("a", "ds", "t"))
    store.jobs.move(failed.id, JobState.FAILED)
    store.quotas.set("tenant:t", {"jobs_queued": 1})
    store.jobs.create(JobRequest("a", "ds", "t"))
    refused(lambda: store.jobs.move(failed.id, JobState.QUEUED))
    assert store.jobs.get(failed.id).state is JobState.FAILED


def test_the_same_idempotency_key_gives_its_job_though_the_queue_is_full(store: Store) -> None:
    store.quotas.set("tenant:t", {"jobs_queued": 1})
    request = JobRequest("a", "ds", "t", idempotency_key="k")
    assert store.jobs.create(request).id == store.jobs.create(request).id


def messages(store: Store, job_id: str) -> list[str]:
    return [e.event.message for e in store.jobs.events(job_id) if e.event.type is TrainEventType.MESSAGE]


def test_jobs_over_the_running_limit_wait_and_say_why_once(store: Store) -> None:
    store.quotas.set("tenant:t", {"jobs_running": 1})
    first, second = (store.jobs.create(JobRequest("a", "ds", "t")) for _ in range(2))
    other = store.jobs.create(JobRequest("a", "ds", "u"))
    taken = [store.jobs.claim("r", 30.0) for _ in range(2)]
    assert {job.id for job in taken if job is not None} == {first.id, other.id}
    assert store.jobs.claim("r", 30.0) is None
    assert store.jobs.claim("r", 30.0) is None
    assert messages(store, second.id) == ["waits: 1 jobs of the tenant are at work, and its quota is 1"]
    store.jobs.move(first.id, JobState.FAILED)
    claimed = store.jobs.claim("r", 30.0)
    assert claimed is not None
    assert claimed.id == second.id


def test_tokens_of_a_day_are_counted_once_and_the_next_day_begins_at_nought(store: Store) -> None:
    now = [NOON]
    jobs, quotas = JobTable(store.database, lambda: now[0]), QuotaTable(store.database, lambda: now[0])
    quotas.set("*", {"training_tokens_per_day": 100})
    job, later = (jobs.create(JobRequest("a", "ds", "t")) for _ in range(2))
    claimed = jobs.claim("r", 30.0)
    assert claimed is not None
    assert claimed.id == job.id
    for fence, tokens in ((claimed.fence, 60.0), (claimed.fence - 1, 1000.0), (claimed.fence, 39.0)):
        step = TrainEvent(TrainEventType.STEP, step=1, metrics={"tokens": tokens})
        jobs.append_event(job.id, step, fence)  # those of a runner that lost the job are dropped
        jobs.flush()
    assert quotas.spent("t") == ""
    jobs.append_event(job.id, TrainEvent(TrainEventType.STEP, step=2, metrics={"tokens": 1.0}), claimed.fence)
    jobs.flush()
    words = "waits until 2027-01-16 (UTC): 100 tokens were trained on today, and the tenant's quota is 100"
    assert quotas.spent("t") == words
    assert quotas.spent("u") == ""
    assert jobs.claim("r", 30.0) is None
    assert messages(store, later.id) == [words]
    now[0] += DAY / 2
    assert quotas.spent("t") == ""
    claimed = jobs.claim("r", 30.0)
    assert claimed is not None
    assert claimed.id == later.id
