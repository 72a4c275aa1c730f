"""Datasets are named by their bytes and belong to a tenant."""

from __future__ import annotations

from pathlib import Path

import pytest

from loramux_server.core.callers.principal import Principal
from loramux_server.core.errors import Code, Error
from loramux_server.core.jobs import JobRequest, JobState, TrainSpec
from loramux_server.store.records import DatasetRecord
from loramux_server.store.store import Store


def put(store: Store, tmp_path: Path, content: bytes, tenant: str = "t") -> DatasetRecord:
    source = tmp_path / "rows.jsonl"
    source.write_bytes(content)
    return store.datasets.put(source, tenant)


def test_the_same_bytes_are_one_dataset(store: Store, tmp_path: Path) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_bytes(b'{"text": "hi"}\n')
    one = store.datasets.put(source, "t", filename="rows.jsonl")
    assert store.datasets.put(source, "t", filename="again.jsonl") == one
    assert one.id == f"ds-{one.digest[:16]}"
    assert store.datasets.get(one.id, "t") == one
    with store.datasets.open(one.id, "t") as file:
        assert file.read() == source.read_bytes()
    assert store.collect_orphans() == ()


def test_each_tenant_has_its_own(store: Store, tmp_path: Path) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_bytes(b"{}")
    one = store.datasets.put(source, "t")
    with pytest.raises(Error) as caught:
        store.datasets.get(one.id, "u")
    assert caught.value.code is Code.NOT_FOUND
    assert store.datasets.put(source, "u").id == one.id
    assert len(list(store.blobs.digests())) == 1


def test_a_tenants_datasets_are_listed_newest_first(store: Store, tmp_path: Path) -> None:
    source, made = tmp_path / "rows.jsonl", []
    for i in range(5):
        source.write_bytes(b"%d" % i)
        made.append(store.datasets.put(source, "t", filename=f"{i}.jsonl", rows=i))
    store.datasets.put(source, "u")
    assert store.datasets.list("t") == (tuple(made[::-1]), "")
    page, token = store.datasets.list("t", page_size=3)
    assert page + store.datasets.list("t", page_size=3, page_token=token)[0] == tuple(made[::-1])
    assert len(store.datasets.list("u")[0]) == 1
    assert store.datasets.list("nobody") == ((), "")
    for wrong in ({"page_size": 0}, {"page_size": 1001}, {"page_token": "x"}):
        with pytest.raises(Error) as caught:
            store.datasets.list("t", **wrong)  # type: ignore[arg-type]
        assert [v.field for v in caught.value.violations] == [*wrong]


@pytest.mark.parametrize("dataset_id", ["", "ds-0", "../x", "a\0b", "x" * 10_000, "ds-%"])
def test_unknown_ids(store: Store, dataset_id: str) -> None:
    with pytest.raises(Error) as caught:
        store.datasets.get(dataset_id, "t")
    assert caught.value.code is Code.NOT_FOUND
    assert len(caught.value.message) < 200


def test_what_is_deleted_is_gone(store: Store, tmp_path: Path) -> None:
    one, other = put(store, tmp_path, b"1"), put(store, tmp_path, b"1", "u")
    assert store.datasets.delete(one.id, "t") == one
    with pytest.raises(Error) as caught:
        store.datasets.delete(one.id, "t")
    assert (caught.value.code, caught.value.reason) == (Code.NOT_FOUND, "DATASET_NOT_FOUND")
    assert store.collect_orphans() == ()  # another tenant has the same bytes
    assert store.datasets.list("u")[0] == (other,)
    store.datasets.delete(other.id, "u")
    assert store.collect_orphans() == (one.digest,)
    assert put(store, tmp_path, b"1").id == one.id


@pytest.mark.parametrize("use", ["rows", "held-out", "replay"])
def test_what_an_unfinished_job_has_is_not_deleted(store: Store, tmp_path: Path, use: str) -> None:
    one, other = put(store, tmp_path, b"1"), put(store, tmp_path, b"2")
    theirs = put(store, tmp_path, b"1", "u")
    request = JobRequest(
        name="acme",
        dataset_id=one.id if use == "rows" else other.id,
        tenant="t",
        validation_dataset_id=one.id if use == "held-out" else "",
        spec=TrainSpec(replay=one.id if use == "replay" else ""),
    )
    job = store.jobs.create(request)
    for state in (None, JobState.RUNNING, JobState.PAUSED, JobState.QUEUED):
        if state is not None:
            store.jobs.move(job.id, state)
        with pytest.raises(Error, match=job.id) as caught:
            store.datasets.delete(one.id, "t")
        assert (caught.value.code, caught.value.reason) == (Code.FAILED_PRECONDITION, "DATASET_IN_USE")
    with pytest.raises(Error) as caught:  # a key that must not know of the job
        store.datasets.delete(one.id, Principal("t", frozenset(), "k", frozenset({"other"})))
    assert job.id not in caught.value.message
    assert store.datasets.delete(theirs.id, "u") == theirs
    store.jobs.move(job.id, JobState.CANCELLED)
    assert store.datasets.delete(one.id, "t") == one
    assert store.jobs.get(job.id).request == request
