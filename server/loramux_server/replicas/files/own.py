"""Files of replicas that share no folder with the front: they cross by way of the blobs, named by their content."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ...store.blobs.blobs import BlobStore
from ...store.blobs.files import copy_file, damaged

ROWS = "rows"
RESULT = "result"


@dataclass(frozen=True, slots=True)
class OwnFiles:
    """Where replicas keep files of their own, and the blobs that they share with the front."""

    folder: str
    """On each host."""
    blobs_url: str = field(repr=False)
    identity: str
    """Of the store: see ``Database.identity``."""
    cache_bytes: int
    """For copies of blobs, of each replica."""


@dataclass(frozen=True, slots=True)
class Crossing:
    """A file or folder of a command that was stored for the other side: what it is, and its digest."""

    name: str
    digest: str


def copy_stored_folder(blobs: BlobStore, digest: str, target: Path) -> None:
    """Make ``target`` of a stored folder, durably. DATA_LOSS unless each file is what was stored."""
    target.mkdir()
    with blobs.holding([digest]):
        place = blobs.local_path(digest)
        for entry in blobs.entries(digest):
            if copy_file(place / entry.name, target / entry.name)[1] != entry.digest:
                raise damaged(digest)


def copy_stored_file(blobs: BlobStore, digest: str, target: Path) -> None:
    """Make ``target`` of a stored file, durably. DATA_LOSS unless it is what was stored."""
    with blobs.holding([digest]):
        if copy_file(blobs.local_path(digest), target)[1] != digest:
            raise damaged(digest)
