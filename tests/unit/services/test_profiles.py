"""Profiles of the engine through both doors: who may take one, and what is left when one leaves or dies."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import grpc
import pytest

from loramux.v1 import server_pb2
from loramux_server.core.errors import Code, Error
from loramux_server.services.common.context import Context

from .json_caller import JsonRefused
from .tenants import Caller, World
from .test_isolation import Worlds, until, worlds

__all__ = ["worlds"]

METHOD = "ServerService/ProfileEngine"


@pytest.fixture
async def world(worlds: Worlds, context: Context) -> AsyncIterator[World]:
    limits = replace(context.limits, max_profile_seconds=30.0, max_profile_events=1000)
    async with worlds(replace(context, limits=limits)) as opened:
        yield opened


async def refusal(caller: Caller, **asked: float) -> str:
    """The name of the code that a profile is refused with."""
    with pytest.raises((grpc.aio.AioRpcError, JsonRefused)) as refused:
        await caller.call(METHOD, server_pb2.ProfileEngineRequest(**asked))  # type: ignore[arg-type]
    error = refused.value
    return error.code if isinstance(error, JsonRefused) else str(error.code().name)  # type: ignore[union-attr]


def leftovers(world: World) -> list[str]:
    return [path.name for path in world.context.store.state.tmp.iterdir()]


async def test_an_operator_gets_the_file_in_pieces(world: World) -> None:
    operator = world.caller("operator")
    found = await operator.call(METHOD, server_pb2.ProfileEngineRequest())
    chunks = [m for m in found if m.HasField("chunk")]
    assert b"".join(m.chunk.data for m in chunks) == world.backend.profile_data  # type: ignore[attr-defined]
    headers = [m.header for m in found if m.HasField("header")]  # type: ignore[attr-defined]
    size = len(world.backend.profile_data)
    for header in headers:  # over HTTP an archive has it
        assert [(f.name, f.size) for f in header.files] == [("loramux-profile.json.gz", size)]
        assert (header.events, header.events_dropped) == (7, 1)
    await operator.call(METHOD, server_pb2.ProfileEngineRequest(seconds=0.5, without_kernels=True))
    assert world.backend.profiled == [(10.0, 1000, True), (0.5, 1000, False)]
    assert leftovers(world) == []


async def test_nobody_else_may(world: World) -> None:
    for name in ("ann", "ann's narrow key", "bob"):
        assert await refusal(world.caller(name)) == "PERMISSION_DENIED"
    assert await refusal(world.caller("mallory")) == "UNAUTHENTICATED"
    assert not world.backend.profiled


@pytest.mark.parametrize("seconds", [-1.0, 30.1, float("nan"), float("inf"), 1e300])
async def test_seconds_have_bounds(world: World, seconds: float) -> None:
    assert await refusal(world.caller("operator"), seconds=seconds) == "INVALID_ARGUMENT"
    assert not world.backend.profiled


@pytest.mark.parametrize("code", [Code.RESOURCE_EXHAUSTED, Code.UNAVAILABLE])
async def test_an_engine_that_refuses_or_dies_leaves_nothing(world: World, code: Code) -> None:
    world.backend.profile_error = Error(code, "gone")
    assert await refusal(world.caller("operator")) == code.name
    assert leftovers(world) == []


async def test_a_caller_that_leaves_ends_the_recording(world: World) -> None:
    world.backend.profile_hangs = True
    call = asyncio.create_task(world.caller("operator").call(METHOD, server_pb2.ProfileEngineRequest()))
    await world.backend.hanging.wait()
    assert len(leftovers(world)) == 1
    call.cancel()
    await until(lambda: not leftovers(world))
    await asyncio.gather(call, return_exceptions=True)
    await until(lambda: not world.calls.running)


async def test_a_caller_that_leaves_while_it_reads_leaves_nothing(world: World) -> None:
    world.backend.profile_data = b"x" * (32 << 20)
    call = asyncio.create_task(world.caller("operator").call(METHOD, server_pb2.ProfileEngineRequest(), first=1))
    await until(lambda: bool(world.backend.profiled))
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    await until(lambda: not leftovers(world))
