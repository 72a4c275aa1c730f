"""Adapters are read by digest, from what a store keeps on this machine, in any process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem

from loramux_server.core.errors import DAMAGED, MISSING, Code, Error
from loramux_server.core.types import COMPUTED_WITH, WEIGHTS_FILE
from loramux_server.store.blobs.blobs import BlobStore
from loramux_server.store.blobs.local import LocalBlobs
from loramux_server.store.blobs.reader import BlobReader
from loramux_server.store.blobs.remote import RemoteBlobs
from tests.damage import HARMS


def open_blobs(root: Path, kind: str, cache_bytes: int = 1 << 20, **options: Any) -> BlobStore:
    for folder in ("blobs", "here"):
        (root / folder).mkdir(exist_ok=True)
    if kind == "local":
        return LocalBlobs(root / "blobs", root / "here")
    fs = DirFileSystem(str(root / "blobs"), LocalFileSystem(auto_mkdir=True))
    return RemoteBlobs(fs, "", root / "here", cache_bytes, **options)


@pytest.fixture(params=["local", "remote"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> BlobStore:
    return open_blobs(tmp_path, request.param)


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    folder = tmp_path / "adapter"
    folder.mkdir()
    for name in (*COMPUTED_WITH, "README.md"):
        (folder / name).write_text(f"what {name} holds")
    return folder


def refused(reader: BlobReader, digest: str) -> Error:
    with pytest.raises(Error) as caught:
        reader.read(digest)
    return caught.value


def test_a_reader_in_another_process_needs_the_folder_and_the_digest_only(blobs: BlobStore, adapter: Path) -> None:
    digest = blobs.put_folder(adapter).digest
    found = BlobReader(Path(str(blobs.reader.folder))).read(digest)
    assert found == {name: (adapter / name).read_bytes() for name in COMPUTED_WITH}


@pytest.mark.parametrize("digest", ["", "../../etc", "/etc/passwd", "F" * 64, "f" * 63, "f" * 65, "f" * 64 + "\n"])
def test_what_is_no_digest_never_becomes_a_path(tmp_path: Path, digest: str) -> None:
    for name in COMPUTED_WITH:
        (tmp_path / name).write_text("not for you")
    error = refused(BlobReader(tmp_path), digest)
    assert error.code is Code.INVALID_ARGUMENT
    assert "64" in error.message


def test_a_digest_that_is_not_there_is_data_loss(blobs: BlobStore) -> None:
    error = refused(blobs.reader, "f" * 64)
    assert (error.code, error.reason) == (Code.DATA_LOSS, MISSING)


@pytest.mark.parametrize("name", COMPUTED_WITH)
@pytest.mark.parametrize("harm", HARMS.values(), ids=HARMS)
def test_damage_is_found_by_who_reads(blobs: BlobStore, adapter: Path, name: str, harm: Callable[[Path], None]) -> None:
    digest = blobs.put_folder(adapter).digest
    harm(blobs.local_path(digest) / name)
    error = refused(blobs.reader, digest)
    assert (error.code, error.reason in (DAMAGED, MISSING)) == (Code.DATA_LOSS, True)
    assert name in error.message


def test_files_under_a_digest_that_is_not_theirs_are_refused(blobs: BlobStore, adapter: Path) -> None:
    """Whoever swaps folder and manifest for others of one another's still has to name them by their content."""
    place = blobs.local_path(blobs.put_folder(adapter).digest)
    (place / ".manifest").unlink(missing_ok=True)
    place.rename(place.with_name("e" * 64))
    if place.parent.name != "here":
        place.parent.rename(place.parent.with_name("ee"))
    error = refused(blobs.reader, "e" * 64)
    assert (error.code, error.reason) == (Code.DATA_LOSS, DAMAGED)


@pytest.mark.parametrize("harm", HARMS.values(), ids=HARMS)
def test_a_local_folder_without_its_list_is_checked_whole(
    tmp_path: Path, adapter: Path, harm: Callable[[Path], None]
) -> None:
    blobs = open_blobs(tmp_path, "local")
    digest = blobs.put_folder(adapter).digest
    harm(tmp_path / "blobs" / "manifests" / digest[:2] / digest)
    assert blobs.reader.read(digest)[WEIGHTS_FILE] == (adapter / WEIGHTS_FILE).read_bytes()


@pytest.mark.parametrize("harm", HARMS.values(), ids=HARMS)
def test_a_copy_whose_list_is_damaged_is_brought_again(
    tmp_path: Path, adapter: Path, harm: Callable[[Path], None]
) -> None:
    blobs = open_blobs(tmp_path, "remote")
    digest = blobs.put_folder(adapter).digest
    (blobs.local_path(digest) / "README.md").unlink()
    harm(blobs.local_path(digest) / ".manifest")
    assert refused(blobs.reader, digest).code is Code.DATA_LOSS
    assert blobs.recheck(digest, COMPUTED_WITH) == []
    assert blobs.reader.read(digest)[WEIGHTS_FILE] == (adapter / WEIGHTS_FILE).read_bytes()


def test_a_copy_of_an_older_version_has_no_list_and_is_read(tmp_path: Path, adapter: Path) -> None:
    blobs = open_blobs(tmp_path, "remote")
    digest = blobs.put_folder(adapter).digest
    (blobs.local_path(digest) / ".manifest").unlink()
    assert blobs.reader.read(digest)[WEIGHTS_FILE] == (adapter / WEIGHTS_FILE).read_bytes()


def test_what_is_put_here_is_collected_once_nobody_holds_it(tmp_path: Path, adapter: Path) -> None:
    blobs = open_blobs(tmp_path, "local")
    digest = blobs.put_here(adapter).digest
    with blobs.holding([digest]):
        assert blobs.collect_orphans(lambda: ()) == ()
        assert blobs.reader.read(digest)
    assert blobs.collect_orphans(lambda: ()) == (digest,)
    assert refused(blobs.reader, digest).reason == MISSING


def test_what_is_put_here_is_not_uploaded(tmp_path: Path, adapter: Path) -> None:
    """It is a copy like others: held it stays, and the cache drops it for a newer one."""
    blobs = open_blobs(tmp_path, "remote", cache_bytes=1, keep_seconds=0)
    digest = blobs.put_here(adapter).digest
    assert not list((tmp_path / "blobs").iterdir())
    (adapter / "README.md").write_text("another")
    with blobs.holding([digest]):
        blobs.put_folder(adapter)
        assert blobs.reader.read(digest)
    (adapter / "README.md").write_text("a third")
    blobs.put_folder(adapter)
    assert refused(blobs.reader, digest).reason == MISSING
