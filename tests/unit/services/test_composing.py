"""Merging through the service: checks, lineage, publishing. The arithmetic is tests/tensor/test_compose.py's."""

from __future__ import annotations

import asyncio
import multiprocessing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from loramux_server.core.backend import EngineInfo
from loramux_server.core.callers.principal import LOCAL
from loramux_server.core.compose import ComposeCommand, ComposeMethod, ComposeResult
from loramux_server.core.errors import Code, Error
from loramux_server.core.types import StackItem
from loramux_server.host.failpoints import VARIABLE, FailpointError
from loramux_server.services.adapters.service import AdapterService
from loramux_server.services.adapters.types import ComposeRequest
from loramux_server.services.common.context import Context
from loramux_server.store.maintenance.doctor import examine
from loramux_server.store.records import AdapterMeta, Composition
from loramux_server.store.store import Store
from tests.examples import few
from tests.unit.services import compose_child

from .adapter_files import write_adapter
from .fakes import FakeBackend

_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["tests.unit.services.compose_child"])


@dataclass
class Composer:
    """Writes a fixed adapter; notes what it was asked."""

    info: EngineInfo
    commands: list[ComposeCommand] = field(default_factory=list)
    refusal: Error | None = None
    running: int = 0

    async def __call__(self, command: ComposeCommand) -> ComposeResult:
        assert self.running == 0
        self.running += 1
        self.commands.append(command)
        await asyncio.sleep(0)
        self.running -= 1
        if self.refusal is not None:
            raise self.refusal
        write_adapter(Path(command.output), self.info, b=0.125 * len(self.commands))
        return ComposeResult(0.25)


@pytest.fixture
def composer(info: EngineInfo) -> Composer:
    return Composer(info)


@pytest.fixture
def service(context: Context, store: Store, info: EngineInfo, composer: Composer, tmp_path: Path) -> AdapterService:
    for i, name in enumerate(("acme", "formal")):
        folder = write_adapter(tmp_path / name, info, b=1.0 + i)
        store.adapters.publish(name, "default", folder, AdapterMeta(2, 4.0))
    return AdapterService(context, composer)


def request(*entries: tuple[str, float], **more: Any) -> ComposeRequest:
    return ComposeRequest("mix", tuple(StackItem(*entry) for entry in entries), principal=LOCAL, **more)


async def test_a_merge_is_published_with_its_lineage(
    service: AdapterService, composer: Composer, store: Store, backend: FakeBackend
) -> None:
    wanted = request(("acme", 1.0), ("formal@1", 0.5), method=ComposeMethod.SVD, rank=2, metadata={"why": "fun"})
    version = await service.compose(wanted)
    assert (version.ref, version.meta.rank, version.meta.metadata) == ("mix@1", 2, {"why": "fun"})
    stack = (StackItem("acme@1", 1.0), StackItem("formal@1", 0.5))
    assert version.meta.composed == Composition("svd", stack, 0.25, rank=2)
    assert version.meta.base_fingerprint == "f" * 64
    assert [a.digest for a in backend.loaded] == [version.digest]
    again = (await service.get("mix", LOCAL)).current
    assert again is not None
    assert again.meta.composed == version.meta.composed
    (command,) = composer.commands
    assert [(e.adapter.ref, e.weight) for e in command.stack.entries] == [("acme@1", 1.0), ("formal@1", 0.5)]
    card = (store.blobs.local_path(version.digest) / "README.md").read_text()
    assert "| `formal@1` | 0.5 |" in card
    assert not any(store.state.tmp.iterdir())


async def test_one_merge_at_a_time_and_each_a_version(service: AdapterService, composer: Composer) -> None:
    wanted = request(("acme", 1.0), ("formal", 1.0))
    made = await asyncio.gather(*(service.compose(wanted) for _ in range(3)))
    assert sorted(v.ref for v in made) == ["mix@1", "mix@2", "mix@3"]


@pytest.mark.parametrize(
    ("wanted", "fields"),
    [
        (request(), ["adapters"]),
        (request(("acme", 0.0)), ["adapters"]),
        (request(("acme", 1.0), ("acme", 1.0)), ["adapters[1].adapter"]),
        (request(("acme", float("nan"))), ["adapters[0].weight"]),
        (request(("acme", 1.0), rank=8), ["rank"]),
        (request(("acme", 1.0), method=ComposeMethod.SVD, rank=0), ["rank"]),
        (request(("acme", 1.0), method=ComposeMethod.SVD, rank=2**31 - 1), ["rank"]),
        (request(("acme", 1.0), density=0.5), ["density"]),
        (request(("acme", 1.0), method=ComposeMethod.TIES, density=0.0, seed=3), ["density", "seed"]),
        (request(("acme", 1.0), method=ComposeMethod.TIES, density=float("nan")), ["density"]),
        (request(("acme", 1.0), metadata={"x": "y" * 5000}), ["metadata['x']"]),
    ],
)
async def test_bad_requests_name_their_fields(
    service: AdapterService, composer: Composer, wanted: ComposeRequest, fields: list[str]
) -> None:
    with pytest.raises(Error) as caught:
        await service.compose(wanted)
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert [v.field for v in caught.value.violations] == fields
    assert composer.commands == []


async def test_refusals_leave_nothing(service: AdapterService, composer: Composer, store: Store) -> None:
    composer.refusal = Error(Code.INVALID_ARGUMENT, "ranks differ")
    with pytest.raises(Error, match="ranks differ"):
        await service.compose(request(("acme", 1.0)))
    with pytest.raises(Error) as caught:
        await service.compose(request(("nobody", 1.0)))
    assert caught.value.code is Code.NOT_FOUND
    assert [a.name for a in store.adapters.list("default")[0]] == ["acme", "formal"]
    assert not any(store.state.tmp.iterdir())


@pytest.mark.parametrize(
    "point", ["compose.written", "compose.before_publish", "blob.durable", "publish.before_commit"]
)
async def test_a_merge_that_fails_half_way_leaves_nothing(
    service: AdapterService, store: Store, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, f"{point}:raise")
    with pytest.raises((Error, FailpointError)):
        await service.compose(request(("acme", 1.0)))
    monkeypatch.delenv(VARIABLE)
    assert [a.name for a in store.adapters.list("default")[0]] == ["acme", "formal"]
    assert not any(store.state.tmp.iterdir())
    store.collect_orphans()
    assert examine(store.database, store.blobs) == []
    assert (await service.compose(request(("acme", 1.0)))).ref == "mix@1"


@pytest.mark.parametrize(
    ("point", "there"),
    few(
        [
            ("publish.committed", True),
            ("publish.before_commit", False),
            ("compose.written", False),
            ("compose.before_publish", False),
            ("blob.renamed", False),
        ],
        2,
    ),
)
def test_a_merge_survives_kill(tmp_path: Path, info: EngineInfo, point: str, there: bool) -> None:
    """Whole or absent; nothing is left of it; the caller who got no answer asks again and gets one version."""
    state, answer = tmp_path / "state", tmp_path / "answer"
    store = Store.open(state)
    folder = write_adapter(tmp_path / "acme", info)
    store.adapters.publish("acme", "default", folder, AdapterMeta(2, 4.0))
    store.close()
    child = _PROCESSES.Process(target=compose_child.main, args=(state, answer, point))
    child.start()
    child.join(60)
    assert child.exitcode == -9
    assert not answer.exists()
    store = Store.open(state)
    assert [a.name for a in store.adapters.list("default")[0]] == (["acme", "mix"] if there else ["acme"])
    assert not any(store.state.tmp.iterdir())
    assert examine(store.database, store.blobs, orphans=False) == []
    store.collect_orphans()
    assert examine(store.database, store.blobs) == []
    store.close()
    again = _PROCESSES.Process(target=compose_child.main, args=(state, answer, "none"))
    again.start()
    again.join(60)
    assert (again.exitcode, answer.read_text()) == (0, "mix@1")
