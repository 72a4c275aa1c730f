"""Where the blobs of a store are: the folder in its state directory, or a URL of fsspec that is marked as this store's.

Two stores that shared a place would each collect the other's files as orphans. So a place has a mark that names its
store, by the identity that the database keeps.
"""

from __future__ import annotations

import os
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

from ...core.errors import Code, Error, invalid_field
from .blobs import MARK, BlobStore
from .cache import KEEP_SECONDS
from .files import delete_path
from .local import LocalBlobs
from .remote import RemoteBlobs

FLAG = "--blobs-url"
CACHE_BYTES = 8 << 30
GRACE_SECONDS = 3600.0
"""Several servers of one database may share a place. What none of their rows names is removed when it is this old."""


def open_blobs(
    url: str,
    identity: str,
    server: str,
    scratch: Path,
    *,
    cache: Path,
    cache_bytes: int = CACHE_BYTES,
    keep_seconds: float = KEEP_SECONDS,
    engine_here: bool = True,
    look_only: bool = False,
) -> BlobStore:
    """The blobs at ``url`` of the store that its database calls ``identity``, for the server called ``server``.

    ``scratch`` and ``cache`` are local folders; ``look_only`` writes nothing to the place. Without ``engine_here``
    what the engine alone needs goes to the place too.
    Raises INVALID_ARGUMENT for a URL that no installed package knows, FAILED_PRECONDITION for a place that cannot be
    used, or that is another store's.
    """
    fs, root = _file_system(url)
    try:
        if not look_only:
            _try_out(fs, root, scratch)
        _check_mark(fs, root, identity, scratch, look_only)
    except Error:
        raise
    except Exception as exc:  # each kind of store has errors of its own (credentials, HTTP, ...)
        raise Error(
            Code.FAILED_PRECONDITION,
            f"{FLAG}: the place cannot be used: {type(exc).__name__}: {str(exc)[:200]}",
            reason="BLOBS_UNUSABLE",
        ) from exc
    if _is_local(fs):
        tmp = Path(root) / f"tmp-{server}"
        if not look_only:
            delete_path(tmp)  # what a crash left
            tmp.mkdir()
        return LocalBlobs(Path(root), tmp, GRACE_SECONDS)
    cache.mkdir(exist_ok=True)
    return RemoteBlobs(
        fs, root, cache, cache_bytes, grace_seconds=GRACE_SECONDS, keep_seconds=keep_seconds, engine_here=engine_here
    )


def _file_system(url: str) -> tuple[Any, str]:
    # Imported late: a store with its blobs in the state directory has no need of it.
    from fsspec.core import url_to_fs
    from fsspec.implementations.local import LocalFileSystem

    try:
        fs, root = url_to_fs(url)
    except (ValueError, ImportError) as exc:
        raise invalid_field(
            FLAG, f"{exc}; give a URL such as file:///mnt/blobs, or s3://bucket/folder with the package s3fs installed"
        ) from None
    return (LocalFileSystem(auto_mkdir=True), root) if type(fs) is LocalFileSystem else (fs, root)


def _is_local(fs: Any) -> bool:
    from fsspec.implementations.local import LocalFileSystem

    return type(fs) is LocalFileSystem


def _try_out(fs: Any, root: str, scratch: Path) -> None:
    """Write, look at and remove a small file: all that will be asked of the place."""
    target, source = f"{root}/try-{uuid.uuid4().hex}", scratch / f"try-{uuid.uuid4().hex}"
    source.write_bytes(b"loramux")
    try:
        fs.put_file(os.fspath(source), target)
        if fs.cat_file(target) != b"loramux" or fs.modified(target).timestamp() <= 0:
            raise Error(Code.FAILED_PRECONDITION, f"{FLAG}: what is written does not come back")
    finally:
        source.unlink()
    fs.rm_file(target)


def _check_mark(fs: Any, root: str, identity: str, scratch: Path, look_only: bool) -> None:
    """Find the mark of this store, or make it in a place that has none."""
    found = ""
    fs.invalidate_cache()
    with suppress(FileNotFoundError):
        found = bytes(fs.cat_file(f"{root}/{MARK}")).decode("ascii", "replace").strip()
    if not found and not look_only:
        source = scratch / f"mark-{uuid.uuid4().hex}"
        source.write_text(identity)
        try:
            fs.put_file(os.fspath(source), f"{root}/{MARK}")
        finally:
            source.unlink()
        found = identity
    if found and found != identity:
        raise Error(
            Code.FAILED_PRECONDITION,
            f"{FLAG}: the files there are those of another database ({found[:32]}), which would be lost; restore that "
            f"database, give another URL, or remove {MARK!r} there if they are not wanted",
            reason="BLOBS_OF_ANOTHER_STORE",
        )
