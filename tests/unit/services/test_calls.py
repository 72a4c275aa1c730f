"""What every door gives its calls: a shared limit of generations, a count, an end with a reason."""

from __future__ import annotations

import asyncio

import pytest

from loramux_server.core.call import Call, current
from loramux_server.core.errors import Code, Error
from loramux_server.core.principal import LOCAL
from loramux_server.services.common.calls import Calls, GenerationLimit, request_id


class Sink:
    def __init__(self) -> None:
        self.ended: list[tuple[str, str]] = []

    def call_finished(self, method: str, code: str, seconds: float) -> None:
        self.ended.append((method, code))


def call(method: str = "Generate") -> Call:
    return Call(method, "r1", LOCAL)


async def method_of_the_call() -> str:
    return current().method


async def test_doors_share_the_limit_of_generations() -> None:
    sink, limit, release = Sink(), GenerationLimit(1), asyncio.Event()
    one, other = Calls(sink, limit), Calls(sink, limit)
    held = asyncio.create_task(one.answer(call(), release.wait, generates=True))
    await asyncio.sleep(0)
    assert (one.running, other.running) == (1, 0)
    with pytest.raises(Error) as refused:
        await other.answer(call("Score"), method_of_the_call, generates=True)
    assert (refused.value.code, refused.value.reason) == (Code.RESOURCE_EXHAUSTED, "QUEUE_FULL")
    assert await other.answer(call("ListJobs"), method_of_the_call, generates=False) == "ListJobs"
    release.set()
    await held
    await one.wait_idle()
    assert await other.answer(call("Score"), method_of_the_call, generates=True) == "Score"
    assert sink.ended == [
        ("Score", "RESOURCE_EXHAUSTED"),
        ("ListJobs", "OK"),
        ("Generate", "OK"),
        ("Score", "OK"),
    ]
    assert limit.running == 0


async def test_calls_that_are_ended_and_defects_have_a_reason() -> None:
    sink = Sink()
    calls = Calls(sink, GenerationLimit(2))
    ended = [asyncio.create_task(calls.answer(call(m), asyncio.Event().wait, generates=True)) for m in ("A", "B")]
    await asyncio.sleep(0)
    calls.fail_running(["A"])
    with pytest.raises(Error, match="shutting down"):
        await ended[0]
    ended[1].cancel()
    await asyncio.wait(ended)
    assert ended[1].cancelled()

    async def broken() -> None:
        raise KeyError("/secret/path")

    with pytest.raises(Error) as defect:
        await calls.answer(call("C"), broken, generates=False)
    assert defect.value.code is Code.INTERNAL
    assert "secret" not in defect.value.message
    assert sink.ended == [("A", "UNAVAILABLE"), ("B", "CANCELLED"), ("C", "INTERNAL")]
    assert calls.running == 0


def test_an_id_that_cannot_be_one_is_replaced() -> None:
    assert request_id("", "from-metadata") == "from-metadata"
    assert request_id("mine", "from-metadata") == "mine"
    assert len(request_id("a b", "from-metadata")) == len(request_id()) == 32
