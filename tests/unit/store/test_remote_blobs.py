"""Blobs that are kept elsewhere: whole or not there, read through checked copies, which stay within their bytes."""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from threading import Barrier
from typing import Any

import fsspec
import pytest
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem

from loramux_server.core.errors import Code, Error
from loramux_server.host.failpoints import VARIABLE
from loramux_server.store.blobs import remote as remote_blobs
from loramux_server.store.blobs.local import LocalBlobs
from loramux_server.store.blobs.places import MARK, open_blobs
from loramux_server.store.blobs.remote import RemoteBlobs
from loramux_server.store.maintenance.backup import backup, restore, verify
from loramux_server.store.maintenance.doctor import Check, examine, repair
from loramux_server.store.records import AdapterMeta
from loramux_server.store.store import Store
from tests.adapter_files import folder_of

Make = Callable[[str], Path]
META = AdapterMeta(4, 8.0)


class Remote(DirFileSystem):  # type: ignore[misc]  # fsspec has no types
    """A folder that is spoken to as one speaks to an object store; what is done to it is counted and may fail."""

    def __init__(self, folder: Path) -> None:
        super().__init__(path=str(folder), fs=LocalFileSystem(auto_mkdir=True), skip_instance_cache=True)
        self.folder = folder
        self.calls: list[str] = []
        self.fail_at = 0
        self.error: Exception = OSError(errno.EIO, "no answer")
        self.cut = False

    def _count(self, name: str) -> None:
        self.calls.append(name)
        if len(self.calls) == self.fail_at:
            raise self.error

    def put_file(self, lpath: str, rpath: str, **kwargs: Any) -> None:
        self._count("put_file")
        super().put_file(lpath, rpath, **kwargs)
        if self.cut:
            os.truncate(self.folder / rpath.lstrip("/"), 3)

    def get_file(self, rpath: str, lpath: str, **kwargs: Any) -> None:
        self._count("get_file")
        super().get_file(rpath, lpath, **kwargs)

    def cat_file(self, path: str, *args: Any, **kwargs: Any) -> bytes:
        self._count("cat_file")
        return bytes(super().cat_file(path, *args, **kwargs))

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        self._count("info")
        return dict(super().info(path, **kwargs))

    def rm_file(self, path: str, **kwargs: Any) -> None:
        self._count("rm_file")
        super().rm_file(path, **kwargs)

    def find(self, path: str, *args: Any, **kwargs: Any) -> list[str]:
        self._count("find")
        return list(super().find(path, *args, **kwargs))


@pytest.fixture
def remote(tmp_path: Path) -> Remote:
    (tmp_path / "remote").mkdir()
    return Remote(tmp_path / "remote")


Open = Callable[..., RemoteBlobs]


@pytest.fixture
def open_remote(remote: Remote, tmp_path: Path) -> Open:
    """``open_remote(cache="cache", max_bytes=..., ...)``: the blobs, through a cache folder of that name."""

    def make(cache: str = "cache", max_bytes: int = 1 << 20, **options: Any) -> RemoteBlobs:
        (tmp_path / cache).mkdir(exist_ok=True)
        return RemoteBlobs(remote, "", tmp_path / cache, max_bytes, **options)

    return make


def test_what_is_put_comes_back_from_another_server(open_remote: Open, folder: Make) -> None:
    here, there = open_remote(), open_remote("elsewhere")
    one, file = here.put_folder(folder("a")), here.put_file(folder("a") / "adapter_config.json")
    assert here.put_folder(folder("a")) == one
    assert sorted(there.digests()) == sorted([one.digest, file.digest])
    found = {p.name: p.read_bytes() for p in there.local_path(one.digest).iterdir()}
    assert hashlib.sha256(found.pop(".manifest")).hexdigest() == one.digest
    assert found == {"adapter_config.json": b"{}", "adapter_model.safetensors": b"a"}
    assert there.local_path(file.digest).read_text() == "{}"
    assert (there.size(one.digest), there.size(file.digest)) == (one.size_bytes, file.size_bytes) == (3, 2)
    for digest in (one.digest, file.digest):
        there.verify(digest)
        assert there.holds(digest)


def test_a_folder_is_called_as_it_is_in_a_local_store(open_remote: Open, folder: Make, tmp_path: Path) -> None:
    for name in ("blobs", "tmp"):
        (tmp_path / name).mkdir()
    local = LocalBlobs(tmp_path / "blobs", tmp_path / "tmp")
    assert local.put_folder(folder("a")) == open_remote().put_folder(folder("a"))


def test_one_small_file_is_read_without_the_rest(open_remote: Open, remote: Remote, folder: Make) -> None:
    digest = open_remote().put_folder(folder("a")).digest
    there = open_remote("elsewhere")
    assert there.read(digest, "adapter_config.json", 10) == b"{}"
    assert "get_file" not in remote.calls
    with pytest.raises(Error) as caught:
        there.read(digest, "adapter_config.json", 1)
    assert caught.value.code is Code.INVALID_ARGUMENT
    for gone in (("0" * 64, "adapter_config.json"), (digest, "README.md")):
        with pytest.raises(Error) as caught:
            there.read(*gone, 10)
        assert caught.value.code is Code.DATA_LOSS


@pytest.mark.parametrize("digest", ["0" * 64, "", "../../etc", "é" * 64])
def test_what_is_not_there_is_lost(open_remote: Open, digest: str) -> None:
    with pytest.raises(Error) as caught:
        open_remote().local_path(digest)
    assert caught.value.code is Code.DATA_LOSS


def test_a_damaged_blob_reaches_nobody_and_a_good_copy_mends_it(
    open_remote: Open, remote: Remote, folder: Make
) -> None:
    digest = open_remote().put_folder(folder("a")).digest
    place = remote.folder / "folders" / digest[:2] / digest
    for name in ("adapter_model.safetensors", ".manifest"):
        (place / name).write_text("b")
        there = open_remote(f"elsewhere{name}")
        for use in (there.local_path, there.verify):
            with pytest.raises(Error) as caught:
                use(digest)
            assert caught.value.code is Code.DATA_LOSS
        assert there.holds(digest)
        open_remote().put_folder(folder("a"))
        there.verify(digest)
        assert (there.local_path(digest) / "adapter_model.safetensors").read_text() == "a"


def test_an_upload_that_is_cut_is_noticed(open_remote: Open, remote: Remote, folder: Make) -> None:
    remote.cut = True
    with pytest.raises(Error) as caught:
        open_remote().put_file(folder("long enough") / "adapter_model.safetensors")
    assert (caught.value.code, caught.value.reason) == (Code.UNAVAILABLE, "BLOB_CUT")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OSError(errno.EIO, "no answer"), Code.UNAVAILABLE),
        (OSError(errno.ENOSPC, "full"), Code.RESOURCE_EXHAUSTED),
        (PermissionError(errno.EACCES, "forbidden"), Code.FAILED_PRECONDITION),
        (RuntimeError("expired token"), Code.UNAVAILABLE),  # libraries of stores raise what they like
    ],
    ids=["EIO", "ENOSPC", "EACCES", "own"],
)
def test_errors_of_a_store_have_codes(
    open_remote: Open, remote: Remote, folder: Make, error: Exception, code: Code
) -> None:
    remote.fail_at, remote.error = 1, error
    with pytest.raises(Error) as caught:
        open_remote().put_folder(folder("a"))
    assert caught.value.code is code
    assert str(remote.folder) not in caught.value.message


def test_any_call_may_fail(open_remote: Open, remote: Remote, folder: Make) -> None:
    """The n-th call to the store fails, for every n: nothing half is there, and the same call again works."""
    names = (f"cache-{n}" for n in itertools.count())

    def life(blobs: RemoteBlobs) -> None:
        digest = blobs.put_folder(folder("a")).digest
        blobs.put_file(folder("a") / "adapter_config.json")
        open_remote(next(names)).local_path(digest)
        blobs.collect_orphans(lambda: ())

    life(open_remote())
    steps = len(remote.calls)
    assert steps > 20
    for n in range(1, steps + 1):
        remote.calls, remote.fail_at = [], n
        blobs = open_remote(next(names))
        with pytest.raises(Error) as caught:
            life(blobs)
        assert caught.value.code is Code.UNAVAILABLE, n
        remote.fail_at = 0
        fresh = open_remote(next(names))
        for digest in fresh.digests():
            if fresh.holds(digest):
                fresh.verify(digest)  # whole, if it is there at all
        life(blobs)
        assert list(fresh.digests()) == []
        assert [p for p in remote.folder.rglob("*") if p.is_file()] == []


@pytest.mark.parametrize("failpoint", ["blob.written", "blob.uploaded", "blob.durable"])
def test_a_crash_leaves_a_whole_blob_or_none(
    open_remote: Open, remote: Remote, folder: Make, tmp_path: Path, failpoint: str
) -> None:
    (tmp_path / "dying").mkdir()
    script = (
        "import sys; from pathlib import Path; from tests.unit.store.test_remote_blobs import Remote, RemoteBlobs;"
        "RemoteBlobs(Remote(Path(sys.argv[1])), '', Path(sys.argv[2]), 99).put_folder(Path(sys.argv[3]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, remote.folder, tmp_path / "dying", folder("a")],
        env={**os.environ, VARIABLE: f"{failpoint}:kill"},
        check=False,
    )
    assert done.returncode == -9
    blobs = open_remote("dying")
    assert not list((tmp_path / "dying").iterdir())  # what was on its way is swept
    seen = [d for d in blobs.digests() if blobs.holds(d)]
    assert len(seen) == (failpoint == "blob.durable")
    assert len(list(blobs.digests())) == (failpoint != "blob.written")  # half a folder is found, to be removed
    blobs.collect_orphans(lambda: ())
    assert list(blobs.digests()) == []
    assert [p for p in remote.folder.rglob("*") if p.is_file()] == []


def test_copies_stay_within_their_bytes_but_for_what_is_in_use(open_remote: Open, folder: Make, tmp_path: Path) -> None:
    digests = [open_remote("first").put_folder(folder(f"{i:010}")).digest for i in range(4)]
    size = sum(file.stat().st_size for file in (tmp_path / "first" / digests[0]).iterdir())
    blobs = open_remote(max_bytes=2 * size, keep_seconds=0)
    with blobs.holding(digests[:1]):
        for digest in digests:
            blobs.local_path(digest)
        kept = {p.name for p in (tmp_path / "cache").iterdir()}
        assert kept == {digests[0], digests[3]}
    with blobs.holding(digests):  # more than it may hold, all of it needed
        assert {p.name for p in (tmp_path / "cache").iterdir()} == set(digests)
    blobs.local_path(digests[2])
    again = open_remote(max_bytes=2 * size, keep_seconds=0)  # a restart finds its copies
    again.put_folder(folder("another"))
    assert sum(p.stat().st_size for p in (tmp_path / "cache").rglob("*") if p.is_file()) <= 2 * size


def test_what_was_just_asked_for_stays(open_remote: Open, folder: Make) -> None:
    digests = [open_remote("first").put_folder(folder(f"{i}")).digest for i in range(3)]
    blobs = open_remote(max_bytes=1)
    paths = [blobs.local_path(digest) for digest in digests]
    assert all(path.exists() for path in paths)


def test_many_who_want_one_blob_cause_one_download(open_remote: Open, remote: Remote, folder: Make) -> None:
    digest = open_remote("first").put_folder(folder("a")).digest
    blobs, together = open_remote(), Barrier(8)
    remote.calls.clear()

    def ask(_: int) -> Path:
        together.wait(30)
        return blobs.local_path(digest)

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(ask, range(8)))) == 1
    assert remote.calls.count("get_file") == 2  # the two files of the folder


def test_what_is_in_use_and_what_is_young_is_not_collected(open_remote: Open, folder: Make, tmp_path: Path) -> None:
    blobs = open_remote()
    digest = blobs.put_folder(folder("a")).digest
    with blobs.holding([digest]):
        assert blobs.collect_orphans(lambda: ()) == ()
    careful = open_remote(grace_seconds=3600)
    assert careful.collect_orphans(lambda: ()) == ()
    for path in (tmp_path / "remote").rglob("*"):
        os.utime(path, (1, 1))
    careful.put_folder(folder("a"))  # by a server that is about to write its row
    assert careful.collect_orphans(lambda: ()) == ()
    for path in (tmp_path / "remote").rglob("*"):
        os.utime(path, (1, 1))
    assert careful.collect_orphans(lambda: ()) == (digest,)
    with pytest.raises(Error):
        blobs.verify(digest)


@pytest.fixture
def memory() -> Iterator[str]:
    """The URL of a place that is gone after the test."""
    fs = fsspec.filesystem("memory")
    yield "memory://blobs"
    fs.rm("/blobs", recursive=True)


@pytest.fixture(params=["memory", "file"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "file":
        return (tmp_path / "place").as_uri()
    return str(request.getfixturevalue("memory"))


def test_a_store_with_its_blobs_at_a_url(url: str, folder: Make, tmp_path: Path) -> None:
    """Publish, restart without the copies, back up, restore to a folder and back, check, collect."""
    with closing(Store.open(tmp_path / "state", blobs_url=url)) as store:
        for content in ("1", "2"):
            store.adapters.publish("acme", "t", folder(content), META)
        store.datasets.put(folder("1") / "adapter_config.json", "t")
        assert not any((tmp_path / "state" / "blobs").iterdir())
    for copy in (tmp_path / "state" / "cache").glob("*"):
        for file in [copy, *copy.glob("*")][::-1]:
            file.rmdir() if file.is_dir() else file.unlink()

    def source(identity: str, scratch: Path) -> Any:
        return open_blobs(
            url, identity, "", scratch, cache=scratch / "c", cache_bytes=0, keep_seconds=0, look_only=True
        )

    made = backup(tmp_path / "state", tmp_path / "backup", source_of=source)
    assert len(made.blobs) == 3
    assert verify(tmp_path / "backup")[1] == []
    restore(tmp_path / "backup", tmp_path / "local")
    with closing(Store.open(tmp_path / "local")) as local:
        assert (folder_of(local, "acme", "t") / "adapter_model.safetensors").read_text() == "2"
        assert examine(local.database, local.blobs) == []
    with closing(Store.open(tmp_path / "state", blobs_url=url)) as store:
        assert (folder_of(store, "acme@1", "t") / "adapter_model.safetensors").read_text() == "1"
        assert examine(store.database, store.blobs) == []
        store.adapters.delete("acme", "t")
        found = examine(store.database, store.blobs)
        assert [f.check for f in found] == [Check.ORPHAN, Check.ORPHAN]
        repair(store.database, store.blobs, found)
        assert examine(store.database, store.blobs) == found  # too young: a server beside might be publishing them


def test_restore_brings_blobs_to_a_url(memory: str, folder: Make, tmp_path: Path) -> None:
    with closing(Store.open(tmp_path / "state")) as store:
        store.adapters.publish("acme", "t", folder("1"), META)
    backup(tmp_path / "state", tmp_path / "backup")

    def target(state: Any, identity: str) -> Any:
        return open_blobs(memory, identity, state.id, state.tmp, cache=state.path / "cache")

    restore(tmp_path / "backup", tmp_path / "new", target_of=target)
    with closing(Store.open(tmp_path / "new", blobs_url=memory)) as store:
        assert examine(store.database, store.blobs) == []
        assert not any((tmp_path / "new" / "blobs").iterdir())


def test_the_doctor_finds_what_is_lost_at_a_url(memory: str, folder: Make, tmp_path: Path) -> None:
    with closing(Store.open(tmp_path / "state", blobs_url=memory)) as store:
        for content in ("1", "2"):
            store.adapters.publish("acme", "t", folder(content), META)
        fs = fsspec.filesystem("memory")
        one, two = sorted(path for path in fs.find("/blobs/folders") if path.endswith(".safetensors"))
        fs.pipe_file(one, b"bitrot")
        fs.rm(two.replace("adapter_model.safetensors", ".manifest"))
        found = examine(store.database, store.blobs, orphans=False)
        assert [f.check for f in found] == [Check.FILES, Check.FILES]
        assert {f.subject for f in found} == {"acme@1", "acme@2"}


def test_another_stores_files_are_left_alone(url: str, folder: Make, tmp_path: Path) -> None:
    with closing(Store.open(tmp_path / "one", blobs_url=url)) as store:
        store.adapters.publish("acme", "t", folder("1"), META)
    with pytest.raises(Error, match=MARK) as caught:
        Store.open(tmp_path / "two", blobs_url=url)
    assert (caught.value.code, caught.value.reason) == (Code.FAILED_PRECONDITION, "BLOBS_OF_ANOTHER_STORE")
    Store.open(tmp_path / "two").close()  # the lock was given back


@pytest.mark.parametrize(
    ("url", "words"),
    [("s3://bucket/folder", "s3fs"), ("nonsense://x", "nonsense"), ("file:///dev/null/x", "cannot be used")],
)
def test_a_place_that_cannot_be_used_is_told_at_the_start(url: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(Error) as caught:
        Store.open(tmp_path / "state", blobs_url=url)
    assert words in str(caught.value)
    assert "--blobs-url" in str(caught.value)
    assert caught.value.code in (Code.INVALID_ARGUMENT, Code.FAILED_PRECONDITION)
    Store.open(tmp_path / "state").close()


def test_a_manifest_is_no_longer_than_it_can_be(
    open_remote: Open, remote: Remote, folder: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = open_remote().put_folder(folder("a")).digest
    monkeypatch.setattr(remote_blobs, "MAX_MANIFEST_BYTES", 10)
    remote.calls.clear()
    with pytest.raises(Error) as caught:
        open_remote("elsewhere").local_path(digest)
    assert caught.value.code is Code.DATA_LOSS
    assert "cat_file" not in remote.calls
