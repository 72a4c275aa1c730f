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
