"""Blobs are named by their content, durable, stored once, and collected when nothing names them."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from loramux_server.core.errors import Code, Error
from loramux_server.store.blobs.blobs import BlobStore
from loramux_server.store.blobs.local import LocalBlobs

Make = Callable[[str], Path]


@pytest.fixture
def blobs(tmp_path: Path) -> BlobStore:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "tmp").mkdir()
    return LocalBlobs(tmp_path / "blobs", tmp_path / "tmp")


def left_over(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "tmp").iterdir())


def test_a_folder_comes_back_whole_and_is_stored_once(blobs: BlobStore, folder: Make, tmp_path: Path) -> None:
    one = blobs.put_folder(folder("a"))
    assert blobs.put_folder(folder("a")) == one
    assert one.size_bytes == 3
    assert {p.name: p.read_text() for p in blobs.local_path(one.digest).iterdir()} == {
        "adapter_config.json": "{}",
        "adapter_model.safetensors": "a",
    }
    assert list(blobs.digests()) == [one.digest]
    assert not left_over(tmp_path)
    blobs.verify(one.digest)


def test_names_and_bytes_both_make_the_digest(blobs: BlobStore, folder: Make) -> None:
    one = blobs.put_folder(folder("a"))
    renamed = folder("a")
    (renamed / "adapter_config.json").rename(renamed / "other.json")
    assert len({one.digest, blobs.put_folder(renamed).digest, blobs.put_folder(folder("b")).digest}) == 3


def test_a_file_is_named_by_its_hash(blobs: BlobStore, tmp_path: Path) -> None:
    source = tmp_path / "data.jsonl"
    source.write_bytes(b"rows" * 500_000)
    blob = blobs.put_file(source)
    assert blob.digest == hashlib.sha256(b"rows" * 500_000).hexdigest()
    assert blobs.local_path(blob.digest).read_bytes() == source.read_bytes()
    blobs.verify(blob.digest)


@pytest.mark.parametrize("digest", ["", "../x", "a" * 63, "A" * 64, "a" * 64, "..%2f", "/etc/passwd", "a\0b"])
def test_what_is_not_there_is_lost(blobs: BlobStore, digest: str) -> None:
    with pytest.raises(Error) as caught:
        blobs.local_path(digest)
    assert caught.value.code is Code.DATA_LOSS


def test_damage_is_found_and_a_good_copy_mends_it(blobs: BlobStore, folder: Make) -> None:
    blob = blobs.put_folder(folder("a"))
    (blobs.local_path(blob.digest) / "adapter_model.safetensors").write_text("b")
    with pytest.raises(Error) as caught:
        blobs.verify(blob.digest)
    assert caught.value.code is Code.DATA_LOSS
    assert blobs.put_folder(folder("a")) == blob
    blobs.verify(blob.digest)


def _add(name: str) -> Callable[[Path], None]:
    return lambda path: (path / name).write_text("x") and None


def _link(path: Path) -> None:
    (path / "link").symlink_to("/etc/passwd")


def _fifo(path: Path) -> None:
    os.mkfifo(path / "fifo")


def _subfolder(path: Path) -> None:
    (path / "sub").mkdir()


def _empty(path: Path) -> None:
    for file in path.iterdir():
        file.unlink()


def _many(path: Path) -> None:
    for i in range(65):
        (path / f"f{i}").write_text("x")


@pytest.mark.parametrize(
    "spoil", [_link, _fifo, _subfolder, _empty, _many, _add(".hidden"), _add("a b"), _add("a\nb"), _add("ü")]
)
def test_only_plain_files_are_stored(
    blobs: BlobStore, folder: Make, tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    path = folder("a")
    spoil(path)
    with pytest.raises(Error) as caught:
        blobs.put_folder(path)
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert not list(blobs.digests())
    assert not left_over(tmp_path)


def test_collection_takes_only_what_nothing_names(blobs: BlobStore, folder: Make, tmp_path: Path) -> None:
    kept, gone = blobs.put_folder(folder("a")), blobs.put_folder(folder("b"))
    assert blobs.collect_orphans(lambda: {kept.digest}) == (gone.digest,)
    assert list(blobs.digests()) == [kept.digest]
    assert not left_over(tmp_path)


def test_collection_waits_for_a_publish_under_way(blobs: BlobStore, folder: Make) -> None:
    """The window between blob and row: what is stored there must not be taken for an orphan."""
    rows: set[str] = set()
    stored, go_on = threading.Event(), threading.Event()

    def publish() -> None:
        with blobs.publishing():
            digest = blobs.put_folder(folder("a")).digest
            stored.set()
            go_on.wait()
            rows.add(digest)

    publisher = threading.Thread(target=publish)
    publisher.start()
    stored.wait()
    collected: list[tuple[str, ...]] = []
    collector = threading.Thread(target=lambda: collected.append(blobs.collect_orphans(lambda: rows)))
    collector.start()
    collector.join(0.05)
    assert collector.is_alive()  # it waits: the row is not there yet
    go_on.set()
    publisher.join()
    collector.join()
    assert collected == [()]


def test_threads_that_store_the_same_content(blobs: BlobStore, folder: Make, tmp_path: Path) -> None:
    path = folder("a")
    found: list[str] = []
    start = threading.Barrier(8)

    def put() -> None:
        start.wait()
        found.append(blobs.put_folder(path).digest)

    threads = [threading.Thread(target=put) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert list(blobs.digests()) == [found[0]]
    assert not left_over(tmp_path)


_STEPS = ("open", "fsync", "rename", "mkdir")


@pytest.mark.parametrize(("number", "code"), [(errno.ENOSPC, Code.RESOURCE_EXHAUSTED), (errno.EIO, Code.UNAVAILABLE)])
def test_any_file_operation_may_fail(
    blobs: BlobStore,
    folder: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    code: Code,
) -> None:
    """The n-th step fails, for every n: a clear error, nothing half there, and the next try succeeds."""
    path = folder("a")
    (path / "one-more").write_text("y")
    real = {name: getattr(os, name) for name in _STEPS}
    fail_at = 0
    while True:
        fail_at += 1
        calls = 0

        def failing(name: str) -> Callable[..., Any]:
            def step(*args: Any, **kwargs: Any) -> Any:
                nonlocal calls
                calls += 1
                if calls == fail_at:  # noqa: B023 - read while this round runs
                    raise OSError(number, os.strerror(number))
                return real[name](*args, **kwargs)

            return step

        with monkeypatch.context() as patch:
            for name in _STEPS:
                patch.setattr(os, name, failing(name))
            try:
                blobs.put_folder(path)
            except Error as error:
                failed: Error | None = error
            else:
                failed = None
        if calls < fail_at:
            break
        assert failed is not None
        assert failed.code is code
        assert str(tmp_path) not in failed.message
        assert not left_over(tmp_path)
        for digest in blobs.digests():
            blobs.verify(digest)  # it may be there, but then it is whole
        blobs.collect_orphans(set)
        for shard in (tmp_path / "blobs").glob("*/*"):
            shard.rmdir()
    assert fail_at > 10
    assert failed is None
