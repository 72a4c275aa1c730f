"""API keys at a real gRPC door: who is refused, with which status, and what that costs the others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from loramux import AsyncClient, Unauthenticated
from loramux.v1 import inference_pb2 as inference
from loramux.v1 import inference_pb2_grpc, server_pb2, server_pb2_grpc
from loramux_server.core.callers.keys import ApiKey
from loramux_server.core.callers.principal import Scope
from loramux_server.services.access.bearer import BearerAuthenticator
from loramux_server.services.access.keys import KeyRing
from loramux_server.store.store import Store

from .scripted import Door, open_door

KEY = ApiKey.generate()


@pytest.fixture
async def door(store: Store) -> AsyncIterator[Door]:
    store.keys.create(KEY, "acme", [Scope.INFER, Scope.TRAIN], adapters=["formal"])
    ring = KeyRing(store.keys)
    await ring.start()
    async with open_door(authenticator=BearerAuthenticator(ring), max_generations=1) as opened:
        yield opened
    await ring.stop()


async def info(door: Door, *values: str, name: str = "authorization") -> str:
    """The status of a call with these values of a metadata key, and its reason."""
    stub = server_pb2_grpc.ServerServiceStub(door.channel)
    try:
        await stub.GetServerInfo(server_pb2.GetServerInfoRequest(), metadata=[(name, value) for value in values])
    except grpc.aio.AioRpcError as error:
        return f"{error.code().name} {_reason(error)}"
    return "OK"


def _reason(error: grpc.aio.AioRpcError) -> str:
    status = rpc_status.from_call(error)  # type: ignore[arg-type]
    for detail in status.details if status else ():
        found = error_details_pb2.ErrorInfo()
        if detail.Unpack(found):
            return found.reason
    return ""


async def test_each_way_to_show_a_key(door: Door) -> None:
    assert await info(door, f"Bearer {KEY.text}") == "OK"
    assert await info(door, f"bearer {KEY.text}") == "OK"
    assert await info(door) == "UNAUTHENTICATED KEY_MISSING"
    assert await info(door, f"Bearer {KEY.text}", f"Bearer {KEY.text}") == "UNAUTHENTICATED KEY_INVALID"
    assert await info(door, "Basic bG9yYW11eDp4", f"Bearer {KEY.text}") == "UNAUTHENTICATED KEY_INVALID"
    assert await info(door, f"Basic {KEY.text}") == "UNAUTHENTICATED KEY_INVALID"
    assert await info(door, KEY.text) == "UNAUTHENTICATED KEY_INVALID"
    assert await info(door, "") == "UNAUTHENTICATED KEY_INVALID"
    assert await info(door, KEY.text, name="x-api-key") == "UNAUTHENTICATED KEY_MISSING"
    # gRPC's own limit of metadata ends the call before anything of ours sees it.
    assert (await info(door, "Bearer " + "x" * 100_000)).startswith("RESOURCE_EXHAUSTED")
    assert await info(door, f"Bearer {KEY.text}") == "OK"


async def test_the_client_sends_its_key_and_hears_what_is_missing(door: Door) -> None:
    address = str(door.server.address)
    async with AsyncClient(address, api_key=KEY.text) as client:
        found = await client.info()
    assert (found.tenant, found.key_id) == ("acme", KEY.id)
    assert (found.scopes, found.allowed_adapters) == (("infer", "train"), ("formal",))
    async with AsyncClient(address) as client:
        with pytest.raises(Unauthenticated, match="authorization: Bearer KEY") as refused:
            await client.info()
    assert refused.value.reason == "KEY_MISSING"


async def test_callers_who_are_refused_take_no_place_of_a_generation(door: Door) -> None:
    """The door takes one generation: a flood of unknown keys must not be it."""
    stub = inference_pb2_grpc.InferenceServiceStub(door.channel)
    request = inference.GenerateRequest(prompt="hello")

    async def ask(key: ApiKey) -> str:
        try:
            await stub.GenerateOnce(request, metadata=[("authorization", f"Bearer {key.text}")])
        except grpc.aio.AioRpcError as error:
            return error.code().name
        return "OK"

    flood = [asyncio.create_task(ask(ApiKey.generate())) for _ in range(50)]
    await asyncio.sleep(0)  # the flood is sent first
    assert await ask(KEY) == "OK"
    assert set(await asyncio.gather(*flood)) == {"UNAUTHENTICATED"}
