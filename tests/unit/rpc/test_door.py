"""The gRPC door over a real server: streams, errors, cancels, deadlines, health, draining."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status

from loramux.v1 import (
    adapters_pb2,
    adapters_pb2_grpc,
    common_pb2,
    inference_pb2,
    inference_pb2_grpc,
    server_pb2,
    server_pb2_grpc,
    training_pb2,
    training_pb2_grpc,
)
from loramux_server.api.methods import SERVICES
from loramux_server.config import Address
from loramux_server.core.backend import EngineStats
from loramux_server.core.callers.principal import LOCAL
from loramux_server.core.errors import Code, Error, invalid_field
from loramux_server.core.types import Chunk
from loramux_server.rpc.limits import RpcLimits
from loramux_server.rpc.server import RpcServer, check_free
from loramux_server.services.access.access import Access
from loramux_server.services.availability import Readiness
from loramux_server.services.common.calls import Calls, GenerationLimit
from loramux_server.services.inference.types import GenerateRequest
from tests.unit.services.fakes import Open

from .scripted import Counted, Door, open_door

REQUEST = inference_pb2.GenerateRequest(prompt="hi")


def inference(door: Door) -> inference_pb2_grpc.InferenceServiceAsyncStub:
    return inference_pb2_grpc.InferenceServiceStub(door.channel)


def training(door: Door) -> training_pb2_grpc.TrainingServiceAsyncStub:
    return training_pb2_grpc.TrainingServiceStub(door.channel)


def info(error: grpc.RpcError) -> error_details_pb2.ErrorInfo:
    status = rpc_status.from_call(error)
    found = error_details_pb2.ErrorInfo()
    assert status is not None
    assert any(d.Unpack(found) for d in status.details)
    return found


async def test_a_stream_arrives_piece_by_piece() -> None:
    async with open_door() as door:
        call = inference(door).Generate(REQUEST, metadata=(("x-request-id", "r-1"),))
        pieces = [piece async for piece in call]
        assert [p.text for p in pieces] == ["hel", "lo"]
        assert [p.request_id for p in pieces] == ["r-1", ""]
        assert pieces[-1].usage.total_tokens == 5
        assert dict(await call.trailing_metadata())["x-request-id"] == "r-1"
        (asked,) = door.generation.requests
        assert (asked.principal, asked.request_id, asked.sampling.max_tokens) == (LOCAL, "r-1", 33)
        assert asked.deadline is None
        assert await door.calls.next() == ("Generate", "OK")


async def test_one_answer_at_once_and_own_request_id() -> None:
    async with open_door() as door:
        result = await inference(door).GenerateOnce(inference_pb2.GenerateRequest(prompt="x", request_id="mine"))
        assert (result.choices[0].text, result.request_id) == ("hello", "mine")
        result = await inference(door).GenerateOnce(REQUEST)
        assert len(result.request_id) == 32
        with pytest.raises(grpc.RpcError, match="request_id"):
            await inference(door).GenerateOnce(inference_pb2.GenerateRequest(prompt="x", request_id="a b"))


async def test_the_clients_deadline_reaches_the_services() -> None:
    async with open_door() as door:
        before = time.monotonic()
        await inference(door).GenerateOnce(REQUEST, timeout=50)
        deadline = door.generation.requests[0].deadline
        assert deadline is not None
        assert before + 45 < deadline < time.monotonic() + 51  # gRPC rounds it on its way


async def test_errors_have_status_and_details() -> None:
    async def refuse(request: GenerateRequest) -> AsyncIterator[Chunk]:
        raise invalid_field("temperature", "must be at least 0")
        yield

    async with open_door() as door:
        door.generation.answer = refuse
        for method in (inference(door).GenerateOnce, lambda request: inference(door).Generate(request).read()):
            with pytest.raises(grpc.RpcError) as caught:
                await method(REQUEST)
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert "temperature" in caught.value.details()
            assert info(caught.value).metadata["request_id"]
        assert [await door.calls.next() for _ in range(2)] == [
            ("GenerateOnce", "INVALID_ARGUMENT"),
            ("Generate", "INVALID_ARGUMENT"),
        ]


async def test_an_error_after_the_first_piece_ends_the_stream() -> None:
    async def half(request: GenerateRequest) -> AsyncIterator[Chunk]:
        yield Chunk(text="first")
        raise Error(Code.UNAVAILABLE, "the engine stopped", reason="ENGINE_GONE", retry_after=2)

    async with open_door() as door:
        door.generation.answer = half
        call = inference(door).Generate(REQUEST)
        assert (await call.read()).text == "first"
        with pytest.raises(grpc.RpcError, match="the engine stopped") as caught:
            await call.read()
        assert (caught.value.code(), info(caught.value).reason) == (grpc.StatusCode.UNAVAILABLE, "ENGINE_GONE")


async def test_a_defect_is_internal_with_an_opaque_id() -> None:
    async def broken(request: GenerateRequest) -> AsyncIterator[Chunk]:
        raise KeyError("/secret/path")
        yield

    async with open_door() as door:
        door.generation.answer = broken
        with pytest.raises(grpc.RpcError) as caught:
            await inference(door).GenerateOnce(REQUEST)
        assert caught.value.code() is grpc.StatusCode.INTERNAL
        assert "secret" not in caught.value.details()
        assert await door.calls.next() == ("GenerateOnce", "INTERNAL")


async def test_a_cancel_closes_the_stream_behind() -> None:
    async with open_door() as door:
        door.generation.answer = door.generation.forever
        call = inference(door).Generate(REQUEST)
        assert (await call.read()).text == "first"
        await door.generation.waiting.wait()
        call.cancel()
        async with asyncio.timeout(5):
            await door.generation.closed.wait()
            assert await door.calls.next() == ("Generate", "CANCELLED")
            assert door.server.running == 0


async def test_a_deadline_closes_the_stream_behind() -> None:
    async with open_door() as door:
        door.generation.answer = door.generation.forever
        with pytest.raises(grpc.RpcError) as caught:
            await inference(door).GenerateOnce(REQUEST, timeout=0.2)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        async with asyncio.timeout(5):
            await door.generation.closed.wait()
            assert await door.calls.next() == ("GenerateOnce", "DEADLINE_EXCEEDED")


async def test_a_client_that_reads_nothing_is_let_go_and_hurts_no_one() -> None:
    async def flood(request: GenerateRequest) -> AsyncIterator[Chunk]:
        while request.prompt == "flood":
            yield Chunk(text="x" * 65536)
        yield Chunk(text="done")

    async with open_door(limits=RpcLimits(stall_timeout=0.3)) as door:
        door.generation.answer = flood
        slow = inference(door).Generate(inference_pb2.GenerateRequest(prompt="flood"))
        await slow.read()
        assert (await inference(door).GenerateOnce(REQUEST)).choices[0].text == "done"
        async with asyncio.timeout(10):
            await door.generation.closed.wait()
        slow.cancel()


async def test_garbage_is_invalid_argument() -> None:
    async with open_door() as door:
        for method in ("InferenceService/GenerateOnce", "TrainingService/GetJob"):
            raw = door.channel.unary_unary(f"/loramux.v1.{method}")
            with pytest.raises(grpc.RpcError) as caught:
                await raw(b"\xff\xff\xff")
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        upload = door.channel.stream_unary("/loramux.v1.TrainingService/UploadDataset")
        with pytest.raises(grpc.RpcError) as caught:
            await upload(iter([b"\xff\xff\xff"]))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_unknown_methods_and_too_large_messages() -> None:
    async with open_door() as door:
        with pytest.raises(grpc.RpcError) as caught:
            await door.channel.unary_unary("/loramux.v1.InferenceService/Nothing")(b"")
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        with pytest.raises(grpc.RpcError) as caught:
            await inference(door).GenerateOnce(inference_pb2.GenerateRequest(prompt="x" * (9 << 20)))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert door.calls.ended == []


async def test_messages_and_metadata_are_as_large_as_the_operator_says() -> None:
    async with open_door(limits=RpcLimits(max_message=1000, max_metadata=1000)) as door:
        stub = inference_pb2_grpc.InferenceServiceStub(door.channel)
        small = inference_pb2.GenerateRequest(prompt="x" * 500)
        assert (await stub.GenerateOnce(small, metadata=(("x-a", "v" * 100),))).choices
        for request, metadata in (
            (inference_pb2.GenerateRequest(prompt="x" * 1500), ()),
            (small, (("x-a", "v" * 2500),)),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.GenerateOnce(request, metadata=metadata)
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_uploads() -> None:
    async with open_door() as door:
        adapter = adapters_pb2_grpc.AdapterServiceStub(door.channel)
        make = adapters_pb2.UploadAdapterRequest
        header = adapters_pb2.UploadAdapterHeader(name="acme", files=[common_pb2.FileInfo(name="a", size=4)])
        chunks = [make(chunk=common_pb2.FileChunk(name="a", data=data)) for data in (b"12", b"34")]
        version = await adapter.UploadAdapter(iter([make(header=header), *chunks]))
        assert version.version == 3
        ((name, files, given),) = door.adapters.uploads
        assert (name, files, given["set_current"]) == ("acme", {"a": b"1234"}, True)
        for wrong in ([], chunks, [make(header=header), make(header=header)]):
            with pytest.raises(grpc.RpcError) as caught:
                await adapter.UploadAdapter(iter(wrong))
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_dataset_sizes_are_held_to() -> None:
    async with open_door() as door:
        make = training_pb2.UploadDatasetRequest

        async def upload(size: int, *chunks: bytes, fmt: str = "") -> training_pb2.Dataset:
            header = make(header=training_pb2.UploadDatasetHeader(name="x", size=size, format=fmt))
            return await training(door).UploadDataset(iter([header, *(make(chunk=c) for c in chunks)]))

        assert (await upload(4, b"ab", b"cd")).id == "ds-1"
        assert (await upload(0, b"abc")).id == "ds-1"
        assert door.training.datasets == [b"abcd", b"abc"]
        for size in (3, 5):
            with pytest.raises(grpc.RpcError, match=r"header\.size"):
                await upload(size, b"ab", b"cd")
        with pytest.raises(grpc.RpcError, match=r"header\.format"):
            await upload(0, b"x", fmt="parquet")


async def test_a_stalled_upload_ends() -> None:
    async with open_door(limits=RpcLimits(stall_timeout=0.2)) as door:
        call = training(door).UploadDataset()
        await call.write(training_pb2.UploadDatasetRequest(header=training_pb2.UploadDatasetHeader(name="x")))
        with pytest.raises(grpc.RpcError) as caught:
            await call
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert door.training.datasets == []


async def test_before_it_is_ready_only_health_and_info_answer() -> None:
    async with open_door(ready=False) as door:
        door.availability.readiness = Readiness.LOADING
        with pytest.raises(grpc.RpcError, match="loading") as caught:
            await inference(door).GenerateOnce(REQUEST)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        described = await server_pb2_grpc.ServerServiceStub(door.channel).GetServerInfo(
            server_pb2.GetServerInfoRequest()
        )
        assert described.state == server_pb2.SERVER_STATE_LOADING
        assert not described.HasField("base")
        health = health_pb2_grpc.HealthStub(door.channel)
        for service in ("", *SERVICES):
            answer = await health.Check(health_pb2.HealthCheckRequest(service=service))
            assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING


async def test_field_c_liveness_from_the_first_moment_to_the_last() -> None:
    """While the base is converted, while the engine is away, while calls finish: the process lives."""
    async with open_door(ready=False) as door:
        health = health_pb2_grpc.HealthStub(door.channel)

        async def status(service: str) -> int:
            answer = await health.Check(health_pb2.HealthCheckRequest(service=service))
            return int(answer.status)

        serving, not_serving = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
        door.availability.readiness, door.availability.step = Readiness.LOADING, "quantising to NF4, 43%"
        assert [await status("liveness"), await status("")] == [serving, not_serving]
        with pytest.raises(grpc.RpcError, match="quantising to NF4, 43%") as caught:
            await inference(door).GenerateOnce(REQUEST)
        assert (caught.value.code(), info(caught.value).reason) == (grpc.StatusCode.UNAVAILABLE, "NOT_READY")
        for up in (True, False, True):
            await door.server.set_serving(up)
            assert [await status("liveness"), await status("")] == [serving, serving if up else not_serving]
        await door.server.drain(0)
        await door.server.set_serving(True)  # an engine that came back too late
        assert [await status("liveness"), await status("")] == [serving, not_serving]


async def test_when_ready_health_serves_and_info_is_whole() -> None:
    async with open_door() as door:
        health = health_pb2_grpc.HealthStub(door.channel)
        for service in ("", *SERVICES):
            answer = await health.Check(health_pb2.HealthCheckRequest(service=service))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        described = await server_pb2_grpc.ServerServiceStub(door.channel).GetServerInfo(
            server_pb2.GetServerInfoRequest()
        )
        assert (described.version, described.base.name, described.device) == ("1.2.3", "tiny", "cpu")
        assert (described.adapters_total, dict(described.jobs)) == (2, {"running": 1})
        assert (described.memory_bytes["base"], described.adapters_resident["device"]) == (7, 1)
        assert (described.limits.max_stack, described.tokenizer.has_chat_template) == (8, True)
        assert described.limits.max_batch_tokens == 512
        assert described.training_job_bytes == 16 * (16 + 48) * 4 * 4  # weights, gradients and two moments in float32


async def test_field_c_reflection_answers_as_v1_too() -> None:
    """Newer tools ask for v1 first, and may want its own description."""
    async with open_door() as door:
        ask = door.channel.stream_stream(
            "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
            request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )
        wanted = "grpc.reflection.v1.ServerReflection"
        questions = [
            reflection_pb2.ServerReflectionRequest(list_services=""),
            reflection_pb2.ServerReflectionRequest(file_containing_symbol=wanted),
            reflection_pb2.ServerReflectionRequest(file_containing_symbol="loramux.v1.InferenceService"),
        ]
        answers = [answer async for answer in ask(iter(questions))]
        names = [service.name for service in answers[0].list_services_response.service]
        assert {wanted, "grpc.reflection.v1alpha.ServerReflection", "loramux.v1.InferenceService"} <= {*names}
        for answer in answers[1:]:
            assert answer.file_descriptor_response.file_descriptor_proto


async def test_reflection_lists_the_services() -> None:
    async with open_door() as door:
        stub = reflection_pb2_grpc.ServerReflectionStub(door.channel)
        call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
        answer = await call.read()
        assert set(SERVICES) < {s.name for s in answer.list_services_response.service}


async def test_reflection_can_be_off() -> None:
    async with open_door(reflects=False) as door:
        for version in ("v1", "v1alpha"):
            path = f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo"
            with pytest.raises(grpc.RpcError) as caught:
                await door.channel.stream_stream(path)(iter([b""])).read()
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        assert (await inference(door).GenerateOnce(REQUEST)).choices


async def test_an_old_connection_is_left_when_its_calls_are_over() -> None:
    """The stream outlives the age of its connection by far, and is whole; the next call goes over another one."""

    async def slow(request: GenerateRequest) -> AsyncIterator[Chunk]:
        for number in range(8):
            yield Chunk(text=str(number))
            await asyncio.sleep(0.1)

    async with open_door(limits=RpcLimits(max_connection_age=0.1)) as door:
        door.generation.answer = slow
        pieces = [piece.text async for piece in inference(door).Generate(REQUEST)]
        assert pieces == [str(number) for number in range(8)]
        async with asyncio.timeout(10):
            while (state := door.channel.get_state()) is grpc.ChannelConnectivity.READY:
                await door.channel.wait_for_state_change(state)
        door.generation.answer = None
        assert (await inference(door).GenerateOnce(REQUEST)).choices


async def test_draining_refuses_new_calls_and_finishes_running_ones() -> None:
    finish = asyncio.Event()

    async def wait(request: GenerateRequest) -> AsyncIterator[Chunk]:
        yield Chunk(text="first")
        await finish.wait()
        yield Chunk(text="last")

    async with open_door() as door:
        door.generation.answer = wait
        call = inference(door).Generate(REQUEST)
        await call.read()
        watch = training(door).WatchJob(training_pb2.WatchJobRequest(job_id="j"))
        assert (await watch.read()).sequence == 4
        door.availability.readiness = Readiness.DRAINING
        draining = asyncio.create_task(door.server.drain(30))
        # A job may go on for hours: whoever follows it is told to come back.
        with pytest.raises(grpc.RpcError) as caught:
            await watch.read()
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        with pytest.raises(grpc.RpcError, match="shutting down") as caught:
            await inference(door).GenerateOnce(REQUEST)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert not draining.done()
        finish.set()
        assert (await call.read()).text == "last"
        assert await draining == 0


async def test_what_outlasts_the_drain_ends_unavailable() -> None:
    async with open_door() as door:
        door.generation.answer = door.generation.forever
        call = inference(door).Generate(REQUEST)
        await call.read()
        await door.generation.waiting.wait()
        door.availability.readiness = Readiness.DRAINING
        assert await door.server.drain(0.05) == 1
        with pytest.raises(grpc.RpcError, match="shutting down") as caught:
            await call.read()
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert door.generation.closed.is_set()
        assert await door.calls.next() == ("Generate", "UNAVAILABLE")


async def test_a_stop_during_the_first_write_is_told() -> None:
    """The call is ended after its first message was handed to gRPC and before that is sent."""
    async with open_door() as door:

        async def begin(request: GenerateRequest) -> AsyncIterator[Chunk]:
            # One turn of the loop later the message is on its way; it takes gRPC's thread more to say that it left.
            asyncio.get_running_loop().call_soon(door.end_calls)
            yield Chunk(text="first")
            await asyncio.Event().wait()

        door.generation.answer = begin
        for _ in range(20):
            call = inference(door).Generate(REQUEST, timeout=10)
            with pytest.raises(grpc.RpcError, match="shutting down") as caught:
                _ = [piece async for piece in call]
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_taken_port_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = Address("127.0.0.1", taken.getsockname()[1])
        with pytest.raises(Error, match=f"{address}.*--listen"):
            check_free(address)
        async with open_door() as door:
            server = RpcServer(door.availability, Calls(Counted(), GenerationLimit(1), Access(Open())), address)
            with pytest.raises(Error, match=f"{address}.*--listen"):
                await server.start()
            await server.stop()
            with pytest.raises(Error, match="--listen"):
                await RpcServer(
                    door.availability, Calls(Counted(), GenerationLimit(1), Access(Open())), door.server.address
                ).start()


async def test_info_is_answered_while_the_engine_is_away() -> None:
    async def gone() -> EngineStats:
        raise Error(Code.UNAVAILABLE, "the engine is starting again")

    async with open_door(stats=gone) as door:
        described = await server_pb2_grpc.ServerServiceStub(door.channel).GetServerInfo(
            server_pb2.GetServerInfoRequest()
        )
        assert described.base.name == "tiny"
        assert not described.memory_bytes


@pytest.mark.slow
async def test_field_03_thousands_of_calls_at_once_get_a_reason_and_are_counted() -> None:
    most, calls = 40, 3000
    release = asyncio.Event()

    async def held(request: GenerateRequest) -> AsyncIterator[Chunk]:
        await release.wait()
        yield Chunk(text="x")

    async with open_door(max_generations=most) as door:
        door.generation.answer = held
        refused: list[grpc.RpcError] = []

        async def one() -> str:
            try:
                return (await inference(door).GenerateOnce(REQUEST)).choices[0].text
            except grpc.RpcError as error:
                refused.append(error)
                if len(refused) == calls - most:
                    release.set()  # none waits for those that are admitted
                return ""

        answers = await asyncio.gather(*(one() for _ in range(calls)))
        assert answers.count("hello") + answers.count("x") == most
        assert len(refused) == calls - most
        for error in refused:
            assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert info(error).reason == "QUEUE_FULL"
            status, retry = rpc_status.from_call(error), error_details_pb2.RetryInfo()
            assert status is not None
            assert any(detail.Unpack(retry) for detail in status.details)
            assert retry.retry_delay.ToMilliseconds() > 0
        assert len(door.generation.requests) == most
        counted = [await door.calls.next() for _ in range(calls)]
        assert counted.count(("GenerateOnce", "RESOURCE_EXHAUSTED")) == calls - most
        assert counted.count(("GenerateOnce", "OK")) == most
        assert (await inference(door).GenerateOnce(REQUEST)).choices  # there is room again
