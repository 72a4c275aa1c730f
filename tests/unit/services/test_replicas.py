"""Replicas through both doors: operators alone see and drain them."""

from __future__ import annotations

import grpc
import pytest

from loramux.v1 import server_pb2
from loramux_server.services.common.context import Context

from .json_caller import JsonRefused
from .tenants import Caller
from .test_isolation import Worlds, worlds

__all__ = ["worlds"]

LIST, DRAIN = "ServerService/ListReplicas", "ServerService/DrainReplica"


async def refusal(caller: Caller, method: str, request: object) -> str:
    """The name of the code that a call is refused with."""
    with pytest.raises((grpc.aio.AioRpcError, JsonRefused)) as refused:
        await caller.call(method, request)  # type: ignore[arg-type]
    error = refused.value
    return error.code if isinstance(error, JsonRefused) else str(error.code().name)  # type: ignore[union-attr]


async def test_an_operator_sees_and_drains_them(worlds: Worlds, context: Context) -> None:
    async with worlds(context) as world:
        world.backend.fleet = ("a", "b")
        operator = world.caller("operator")
        found = (await operator.one(LIST, server_pb2.ListReplicasRequest())).replicas
        assert [replica.id for replica in found] == ["a", "b"]
        assert found[0] == server_pb2.Replica(
            id="a",
            state=server_pb2.REPLICA_STATE_READY,
            node="host",
            requests_running=1,
            requests_waiting=2,
            queued_tokens=30,
            training_jobs=["job"],
        )
        await operator.one(DRAIN, server_pb2.DrainReplicaRequest(id="b"))
        assert world.backend.drained == ["b"]
        assert await refusal(operator, DRAIN, server_pb2.DrainReplicaRequest(id="c")) == "NOT_FOUND"


async def test_nobody_else_does(worlds: Worlds, context: Context) -> None:
    async with worlds(context) as world:
        ann = world.caller("ann")
        assert await refusal(ann, LIST, server_pb2.ListReplicasRequest()) == "PERMISSION_DENIED"
        assert await refusal(ann, DRAIN, server_pb2.DrainReplicaRequest(id="engine")) == "PERMISSION_DENIED"
        assert world.backend.drained == []
