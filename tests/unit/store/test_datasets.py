"""Datasets are named by their bytes and belong to a tenant."""

from __future__ import annotations

from pathlib import Path

import pytest

from loramux_server.core.errors import Code, Error
from loramux_server.store.store import Store


def test_the_same_bytes_are_one_dataset(store: Store, tmp_path: Path) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_bytes(b'{"text": "hi"}\n')
    one = store.datasets.put(source, "t", filename="rows.jsonl")
    assert store.datasets.put(source, "t", filename="again.jsonl") == one
    assert one.id == f"ds-{one.digest[:16]}"
    assert store.datasets.get(one.id, "t") == one
    assert store.datasets.path(one.id, "t").read_bytes() == source.read_bytes()
    assert store.collect_orphans() == ()
    store.datasets.set_rows(one.id, "t", 1)
    assert store.datasets.get(one.id, "t").rows == 1


def test_each_tenant_has_its_own(store: Store, tmp_path: Path) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_bytes(b"{}")
    one = store.datasets.put(source, "t")
    with pytest.raises(Error) as caught:
        store.datasets.get(one.id, "u")
    assert caught.value.code is Code.NOT_FOUND
    assert store.datasets.put(source, "u").id == one.id
    assert len(list(store.blobs.digests())) == 1


@pytest.mark.parametrize("dataset_id", ["", "ds-0", "../x", "a\0b", "x" * 10_000, "ds-%"])
def test_unknown_ids(store: Store, dataset_id: str) -> None:
    with pytest.raises(Error) as caught:
        store.datasets.get(dataset_id, "t")
    assert caught.value.code is Code.NOT_FOUND
    assert len(caught.value.message) < 200
