"""Where a store has the files of an adapter version."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from loramux_server.store.store import Store


def folder_of(store: Store, ref: str, tenant: str = "default", donors: Mapping[str, str] | None = None) -> Path:
    """The folder of the version that a reference means."""
    return store.blobs.local_path(store.adapters.resolve(ref, tenant, donors or {}).digest)
