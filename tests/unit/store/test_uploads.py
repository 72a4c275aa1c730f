"""Uploads in parts: bounded in bytes, parts, number and time, and counted against the quota from the beginning."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from loramux_server.core.errors import Code, Error
from loramux_server.store.maintenance.doctor import examine, repair
from loramux_server.store.records import PartRecord, UploadRecord, UploadState
from loramux_server.store.store import Store
from tests.damage import flip_bit


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[Store]:
    opened = Store.open(tmp_path / "state", now=clock)
    yield opened
    opened.close()


def begin(store: Store, size: int = 10, owner: str = "t", most: int = 9) -> UploadRecord:
    return store.uploads.create(owner, "rows.jsonl", size, seconds=60, most=most)


def add(
    store: Store, tmp_path: Path, upload: UploadRecord, content: str, owner: str = "t", most: int = 9
) -> PartRecord:
    source = tmp_path / "part"
    source.write_text(content)
    return store.uploads.add_part(upload.id, owner, source, most=most)


def refused(code: Code, reason: str) -> pytest.RaisesExc[Error]:
    return pytest.raises(Error, check=lambda error: (error.code, error.reason) == (code, reason))


def test_parts_are_named_by_their_bytes_and_kept(store: Store, tmp_path: Path, clock: Clock) -> None:
    upload = begin(store)
    one, two = add(store, tmp_path, upload, "abcd"), add(store, tmp_path, upload, "efghij")
    assert add(store, tmp_path, upload, "abcd") == one
    store.close()
    store = Store.open(tmp_path / "state", now=clock)
    assert store.uploads.parts(upload.id, "t") == {one.id: one, two.id: two}
    assert store.collect_orphans() == ()
    with store.uploads.open_part(two) as file:
        assert file.read() == b"efghij"
    assert examine(store.database, store.blobs) == []


def test_an_upload_has_bounds(store: Store, tmp_path: Path) -> None:
    upload = begin(store)
    add(store, tmp_path, upload, "abcd")
    with refused(Code.RESOURCE_EXHAUSTED, "UPLOAD_TOO_LARGE"):
        add(store, tmp_path, upload, "7 bytes")
    with refused(Code.RESOURCE_EXHAUSTED, "TOO_MANY_PARTS"):
        add(store, tmp_path, upload, "ef", most=1)
    for _ in range(2):
        begin(store, most=3)
    with refused(Code.RESOURCE_EXHAUSTED, "TOO_MANY_UPLOADS"):
        begin(store, most=3)
    begin(store, owner="u", most=3)
    store.uploads.cancel(upload.id, "t")
    begin(store, most=3)


def test_what_is_announced_counts_as_stored(store: Store, tmp_path: Path) -> None:
    store.quotas.set("tenant:t", {"stored_bytes": 10})
    upload = begin(store, 6)
    with refused(Code.RESOURCE_EXHAUSTED, "QUOTA_EXCEEDED"):
        begin(store, 5)
    add(store, tmp_path, upload, "abcdef")
    begin(store, 4)
    source = tmp_path / "whole"
    source.write_text("abcdef")
    with refused(Code.RESOURCE_EXHAUSTED, "QUOTA_EXCEEDED"):
        store.datasets.put(source, "t")
    dataset = store.datasets.put(source, "t", upload_id=upload.id)  # in the place of what was announced
    assert store.uploads.get(upload.id, "t").dataset_id == dataset.id
    with refused(Code.RESOURCE_EXHAUSTED, "QUOTA_EXCEEDED"):
        begin(store, 1)


def test_what_has_ended_takes_nothing_more(store: Store, tmp_path: Path) -> None:
    source = tmp_path / "whole"
    source.write_text("abcd")
    done, cancelled = begin(store), begin(store)
    part = add(store, tmp_path, cancelled, "xyz")
    store.datasets.put(source, "t", upload_id=done.id)
    assert store.uploads.cancel(cancelled.id, "t").state is UploadState.CANCELLED
    assert store.uploads.cancel(cancelled.id, "t").state is UploadState.CANCELLED
    assert store.collect_orphans() == (part.digest,)
    for upload in (done, cancelled):
        with refused(Code.FAILED_PRECONDITION, "FAILED_PRECONDITION"):
            add(store, tmp_path, upload, "efgh")
        with refused(Code.FAILED_PRECONDITION, "FAILED_PRECONDITION"):
            store.datasets.put(source, "t", upload_id=upload.id)
    with refused(Code.FAILED_PRECONDITION, "FAILED_PRECONDITION"):
        store.uploads.cancel(done.id, "t")


def test_an_upload_expires(store: Store, tmp_path: Path, clock: Clock) -> None:
    upload = begin(store)
    part = add(store, tmp_path, upload, "abcd")
    assert store.uploads.drop_expired() == 0
    clock.now += 60
    for ask in (
        lambda: store.uploads.get(upload.id, "t"),
        lambda: add(store, tmp_path, upload, "ef"),
        lambda: store.uploads.cancel(upload.id, "t"),
    ):
        with refused(Code.NOT_FOUND, "UPLOAD_NOT_FOUND"):
            ask()
    assert (store.uploads.drop_expired(), store.uploads.drop_expired()) == (1, 0)
    assert part.digest in store.collect_orphans()
    begin(store, most=1)
    clock.now += 60
    begin(store, most=1)  # whoever begins need not wait until somebody sweeps


def test_anothers_upload_is_absent(store: Store, tmp_path: Path) -> None:
    upload = begin(store)
    source = tmp_path / "whole"
    source.write_text("abcd")
    for ask in (
        lambda: store.uploads.get(upload.id, "u"),
        lambda: store.uploads.parts(upload.id, "u"),
        lambda: add(store, tmp_path, upload, "ef", "u"),
        lambda: store.uploads.cancel(upload.id, "u"),
        lambda: store.datasets.put(source, "u", upload_id=upload.id),
    ):
        with refused(Code.NOT_FOUND, "UPLOAD_NOT_FOUND"):
            ask()
    assert store.uploads.get(upload.id, "t") == upload


def test_a_damaged_part_is_told_and_healed_by_sending_it_again(store: Store, tmp_path: Path) -> None:
    upload = begin(store)
    part = add(store, tmp_path, upload, "abcd")
    flip_bit(store.blobs.local_path(part.digest))
    with pytest.raises(Error, match=f"{part.id} is damaged") as caught:
        store.uploads.open_part(part)
    assert caught.value.code is Code.DATA_LOSS
    (finding,) = examine(store.database, store.blobs)
    assert (finding.check, finding.subject) == ("upload", upload.id)
    assert add(store, tmp_path, upload, "abcd") == part
    with store.uploads.open_part(part) as file:
        assert file.read() == b"abcd"
    store.blobs.local_path(part.digest).unlink()
    found = examine(store.database, store.blobs)
    repair(store.database, store.blobs, found)
    assert store.uploads.parts(upload.id, "t") == {}
    assert examine(store.database, store.blobs) == []
