"""Requests for embeddings through the service with a scripted engine: checks, order, usage, stacks and failures."""

from __future__ import annotations

import asyncio
import struct
from dataclasses import replace
from pathlib import Path

import pytest

from loramux_server.core.backend import EmbedCommand, EmbedResult, EngineInfo
from loramux_server.core.callers.principal import LOCAL
from loramux_server.core.errors import Code, Error
from loramux_server.core.types import Pooling, StackItem
from loramux_server.services.common.context import Context
from loramux_server.services.common.limits import Limits
from loramux_server.services.inference.embedding import AT_ONCE
from loramux_server.services.inference.service import GenerationService
from loramux_server.services.inference.types import EmbedRequest
from loramux_server.store.records import AdapterMeta
from loramux_server.text import TextTokenizer

from .adapter_files import write_adapter
from .fakes import FakeBackend
from .recording import Recorder


@pytest.fixture
def limits() -> Limits:
    return Limits(max_embed_inputs=100, max_prompt_bytes=400)


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def service(context: Context, recorder: Recorder) -> GenerationService:
    return GenerationService(context, recorder)


def asked(*input: str | tuple[int, ...], **fields: object) -> EmbedRequest:
    return EmbedRequest(principal=LOCAL, input=input, **fields)  # type: ignore[arg-type]


async def test_texts_and_tokens_in_their_order(
    service: GenerationService, backend: FakeBackend, text: TextTokenizer, recorder: Recorder
) -> None:
    texts = [f"The shop is in street {'number ' * (i % 4)}{i}." for i in range(40)]
    found = await service.embed(asked(*texts, (5, 6, 7), pooling=Pooling.LAST, normalize=False))
    ids = [*map(text.encode, texts), [5, 6, 7]]
    assert [found.values(i)[0] for i in range(41)] == [len(each) for each in ids]
    assert found.values(40) == (3.0, 0.5, -1.0, 2.0**-126)
    assert (found.dimensions, found.prompt_tokens) == (4, sum(map(len, ids)))
    assert sorted(c.prompt_ids for c in backend.embedded) == sorted(map(tuple, ids))
    assert {(c.pooling, c.normalize, c.tenant) for c in backend.embedded} == {(Pooling.LAST, False, LOCAL.tenant)}
    (done,) = recorder.finished
    assert (done.method, done.prompt_tokens, done.completion_tokens, done.code) == (
        *("embed", found.prompt_tokens, 0, "OK"),
    )


async def test_a_stack_is_resolved_to_versions(
    service: GenerationService, backend: FakeBackend, context: Context, info: EngineInfo, tmp_path: Path
) -> None:
    folder = write_adapter(tmp_path / "acme", info)
    context.store.adapters.publish("acme", "default", folder, AdapterMeta(rank=2, alpha=4.0))
    found = await service.embed(asked("x", adapters=(StackItem("acme", 0.5),)))
    assert [(e.adapter.ref, e.weight) for e in found.adapters] == [("acme@1", 0.5)]
    assert backend.embedded[0].stack.entries == found.adapters
    with pytest.raises(Error, match="nobody") as caught:
        await service.embed(asked("x", adapters=(StackItem("nobody"),)))
    assert caught.value.code is Code.NOT_FOUND
    assert len(backend.embedded) == 1


@pytest.mark.parametrize(
    ("request_", "fields"),
    [
        (asked(), ["input"]),
        (asked(*["x"] * 101), ["input"]),
        (asked("x", ""), ["input[1]"]),
        (asked("x", ()), ["input[1]"]),
        (asked("\ud800"), ["input[0]"]),
        (asked("x" * 401), ["input[0]"]),
        (asked((5, -1)), ["input[0]"]),
        (asked((10**6,), "x", (2**40,)), ["input[0]", "input[2]"]),
        (asked("x", dimensions=3), ["dimensions"]),
        (asked("x", dimensions=0, adapters=(StackItem("a"), StackItem("a"))), ["adapters[1].adapter", "dimensions"]),
        (asked(tuple([5] * 257)), ["input[0]"]),
    ],
)
async def test_bad_fields_never_reach_the_engine(
    service: GenerationService, backend: FakeBackend, request_: EmbedRequest, fields: list[str]
) -> None:
    with pytest.raises(Error) as caught:
        await service.embed(request_)
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert [v.field for v in caught.value.violations] == fields
    assert backend.embedded == []


async def test_a_whole_context_fits_and_all_dimensions_may_be_named(service: GenerationService) -> None:
    found = await service.embed(asked(tuple([5] * 256), dimensions=4))
    assert found.prompt_tokens == 256
    with pytest.raises(Error) as caught:
        await service.embed(asked(tuple([5] * 257)))
    assert caught.value.reason == "PROMPT_TOO_LONG"


async def test_an_answer_fits_in_a_message(context: Context, backend: FakeBackend) -> None:
    wide = replace(context, info=replace(context.info, hidden_size=4 << 20))
    with pytest.raises(Error, match="at most 3 are allowed"):
        await GenerationService(wide).embed(asked(*"abcd"))
    assert backend.embedded == []


async def test_few_are_in_the_engine_at_once_and_a_failure_ends_them_all(
    service: GenerationService, backend: FakeBackend, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    running: set[str] = set()
    most = 0
    failing = asyncio.Event()

    async def embed(command: EmbedCommand) -> EmbedResult:
        nonlocal most
        running.add(command.id)
        most = max(most, len(running))
        try:
            if len(running) == AT_ONCE:
                failing.set()
                raise Error(Code.UNAVAILABLE, "the engine is starting again", retry_after=1)
            if failing.is_set():
                await asyncio.Event().wait()
            await asyncio.sleep(0)
            return EmbedResult(struct.pack("<4f", *range(4))) if not failing.is_set() else await asyncio.Future()
        finally:
            running.discard(command.id)

    monkeypatch.setattr(backend, "embed", embed)
    with pytest.raises(Error, match="starting again"):
        await asyncio.wait_for(service.embed(asked(*["x"] * 60)), 20)
    assert (most, running) == (AT_ONCE, set())
    assert [done.code for done in recorder.finished] == ["UNAVAILABLE"]


async def test_the_deadline_holds(service: GenerationService, backend: FakeBackend, recorder: Recorder) -> None:
    async def never(command: EmbedCommand) -> EmbedResult:
        await asyncio.Event().wait()
        raise AssertionError

    backend.embed = never  # type: ignore[method-assign]
    loop = asyncio.get_running_loop()
    with pytest.raises(Error) as caught:
        await service.embed(asked("x", deadline=loop.time() + 0.05))
    assert caught.value.code is Code.DEADLINE_EXCEEDED
    assert [done.code for done in recorder.finished] == ["DEADLINE_EXCEEDED"]
