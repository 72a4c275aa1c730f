"""Adapters that change while they are used: requests keep what they started with, the next ones see what is new."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from loramux_server.core.backend import EngineInfo
from loramux_server.core.callers.principal import LOCAL
from loramux_server.core.errors import Code, Error
from loramux_server.core.types import StackItem
from loramux_server.services.adapters.service import AdapterService
from loramux_server.services.common.context import Context
from loramux_server.services.inference.service import GenerationService
from loramux_server.services.inference.types import GenerateRequest
from loramux_server.store.store import Store
from loramux_server.text import TextTokenizer

from .adapter_files import CONFIG, WEIGHTS, config_bytes, weights_bytes
from .fakes import FakeBackend, Script

REQUEST = GenerateRequest(prompt="hello", adapters=(StackItem("acme"),), principal=LOCAL)


@pytest.fixture
def adapters(context: Context) -> AdapterService:
    return AdapterService(context)


@pytest.fixture
def generation(context: Context) -> GenerationService:
    return GenerationService(context)


async def upload(adapters: AdapterService, info: EngineInfo, b: float) -> str:
    async def chunks() -> AsyncIterator[tuple[str, bytes]]:
        yield CONFIG, config_bytes()
        yield WEIGHTS, weights_bytes(info, b=b)

    return (await adapters.upload("acme", chunks(), LOCAL)).ref


async def test_many_publish_one_name_at_once(adapters: AdapterService, info: EngineInfo, store: Store) -> None:
    """Unlike content: numbers follow each other. The same content: one version, whoever came first."""
    assert sorted(await asyncio.gather(*(upload(adapters, info, 1.0 + i) for i in range(6)))) == [
        f"acme@{n}" for n in range(1, 7)
    ]
    assert len(set(await asyncio.gather(*(upload(adapters, info, 9.0) for _ in range(6))))) == 1
    assert len(store.adapters.get("acme", "default").versions) == 7
    assert not any(store.state.tmp.iterdir())


async def test_streams_keep_their_version_over_a_swap_and_a_deletion(
    adapters: AdapterService,
    generation: GenerationService,
    backend: FakeBackend,
    info: EngineInfo,
    store: Store,
    text: TextTokenizer,
) -> None:
    await upload(adapters, info, 1.0)
    ids = tuple(text.encode_continuation("one two three"))
    backend.script = lambda command: Script(ids)
    async with aclosing(generation.generate(REQUEST)) as old:
        first = await anext(old)
        assert [e.adapter.ref for e in first.adapters] == ["acme@1"]
        await upload(adapters, info, 2.0)
        # Answered: so the very next request must have it.
        async with aclosing(generation.generate(REQUEST)) as new:
            assert [e.adapter.ref for e in (await anext(new)).adapters] == ["acme@2"]
            assert await adapters.delete("acme", LOCAL) == 2
            assert store.collect_orphans() == ()  # both are in use
            with pytest.raises(Error) as caught:
                await generation.generate_once(REQUEST)
            assert caught.value.code is Code.NOT_FOUND
            assert [c.adapters[0].adapter.ref async for c in new if c.usage] == ["acme@2"]
        assert len(store.collect_orphans()) == 1
        last = [c async for c in old][-1]
        assert [e.adapter.ref for e in last.adapters] == ["acme@1"]
        assert len([*store.blobs.digests()]) == 1
    assert len(store.collect_orphans()) == 1
    assert list(store.blobs.digests()) == []


async def test_a_stream_that_is_left_lets_go_of_its_files(
    adapters: AdapterService, generation: GenerationService, backend: FakeBackend, info: EngineInfo, store: Store
) -> None:
    await upload(adapters, info, 1.0)
    backend.script = lambda command: Script((5, 6), hang=True)
    async with aclosing(generation.generate(REQUEST)) as stream:
        await anext(stream)
        await adapters.delete("acme", LOCAL)
        assert store.collect_orphans() == ()
    assert len(store.collect_orphans()) == 1


@pytest.mark.slow
async def test_hundreds_of_streams_while_names_move(
    adapters: AdapterService,
    generation: GenerationService,
    backend: FakeBackend,
    info: EngineInfo,
    store: Store,
    text: TextTokenizer,
) -> None:
    """Publish, roll back, promote and delete under 300 streams: each keeps the version that was current as it came."""
    ids = tuple(text.encode_continuation("one two three four five six seven eight"))
    going = asyncio.Event()
    backend.script = lambda command: Script(ids)
    current = [await upload(adapters, info, 1.0)]  # what the name meant, in order
    under_way: set[str] = set()
    begun = asyncio.Semaphore(0)

    async def stream() -> tuple[str, int]:
        """The version of a stream and how many tokens it brought."""
        before = len(current) - 1
        seen: set[str] = set()
        tokens = 0
        async with aclosing(generation.generate(REQUEST)) as chunks:
            async for chunk in chunks:
                if chunk.adapters:
                    begun.release()
                    seen |= {entry.adapter.ref for entry in chunk.adapters}
                    under_way.update(entry.adapter.digest for entry in chunk.adapters)
                tokens = chunk.usage.completion_tokens if chunk.usage else tokens
                await going.wait()  # all are under way before the first ends
        (ref,) = seen
        assert ref in current[before:]
        return ref, tokens

    streams: list[asyncio.Task[tuple[str, int]]] = []
    for turn in range(10):
        streams += [asyncio.create_task(stream()) for _ in range(30)]
        await asyncio.sleep(0)  # they begin, and resolve their names while the next lines run
        if turn % 3 == 2:
            back = int(current[0].partition("@")[2])
            await adapters.set_alias("acme", back, LOCAL)
            current.append(f"acme@{back}")
        else:
            current.append(await upload(adapters, info, 2.0 + turn))
        # Answered, so the next request has it.
        async with aclosing(generation.generate(REQUEST)) as chunks:
            assert [e.adapter.ref for e in (await anext(chunks)).adapters] == current[-1:]
    async with asyncio.timeout(60):
        for _ in streams:
            await begun.acquire()
    assert len(under_way) > 3
    await adapters.delete("acme", LOCAL)
    store.collect_orphans()
    assert set(store.blobs.digests()) == under_way
    with pytest.raises(Error) as caught:
        await generation.generate_once(REQUEST)
    assert caught.value.code is Code.NOT_FOUND
    going.set()
    results = await asyncio.gather(*streams)
    assert {tokens for _, tokens in results} == {len(ids)}
    store.collect_orphans()
    assert list(store.blobs.digests()) == []
    assert not any(store.state.tmp.iterdir())
