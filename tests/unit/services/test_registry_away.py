"""The registry's database goes away and comes back: what was asked for before goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import structlog

from loramux_server.core.errors import Code, Error
from loramux_server.core.outage import FIRST, Outage
from loramux_server.core.types import StackItem
from loramux_server.services.stacks import StackResolver
from loramux_server.store.records import AdapterMeta
from loramux_server.store.store import Store


def publish(store: Store, name: str, root: Path) -> None:
    folder = root / name
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_bytes(name.encode())
    store.adapters.publish(name, "t", folder, AdapterMeta(4, 8.0))


@contextmanager
def away(store: Store) -> Iterator[None]:
    """The database's connections fail, as they do when its server is gone."""
    engine = store.database._engine
    url = engine.url.set(database="/nonexistent/folder/db")
    engine.dispose()
    original = engine.pool._creator  # type: ignore[attr-defined]
    engine.pool._creator = lambda *_: engine.dialect.connect(url.database)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        engine.pool._creator = original  # type: ignore[attr-defined]


def names(resolver: StackResolver, *asked: str) -> list[str]:
    stack = asyncio.run(resolver.resolve([StackItem(name) for name in asked], "t"))
    return [entry.adapter.ref for entry in stack.entries]


def test_field_c_adapters_in_use_go_on_while_the_database_is_away(store: Store, tmp_path: Path) -> None:
    for name in ("warm", "cold"):
        publish(store, name, tmp_path)
    resolver = StackResolver(store)
    assert names(resolver, "warm") == ["warm@1"]
    with away(store), structlog.testing.capture_logs() as logs:
        for _ in range(20):
            assert names(resolver, "warm") == ["warm@1"]
        for asked in (("cold",), ("warm", "cold")):
            with pytest.raises(Error) as caught:
                names(resolver, *asked)
            assert caught.value.code is Code.UNAVAILABLE
        # Another tenant never asked for it.
        with pytest.raises(Error):
            asyncio.run(resolver.resolve([StackItem("warm")], "other"))
    assert len(logs) == 1
    assert names(resolver, "cold", "warm") == ["cold@1", "warm@1"]
    store.adapters.delete("warm", "t")
    with pytest.raises(Error) as caught:
        names(resolver, "warm")
    assert caught.value.code is Code.NOT_FOUND
    with away(store), pytest.raises(Error) as caught:
        names(resolver, "warm")
    assert caught.value.code is Code.UNAVAILABLE


def test_field_c_an_outage_is_told_at_growing_intervals() -> None:
    now = [0.0]
    outage = Outage(lambda: now[0])
    assert outage.over() is None
    told = []
    for tenth in range(36_000):  # an hour, ten failures a second
        now[0] = tenth / 10
        if outage.failed():
            told.append(now[0])
    assert told[:3] == [0.0, FIRST, 3 * FIRST]
    assert len(told) < 15
    assert outage.over() == pytest.approx(now[0])
    assert outage.over() is None
