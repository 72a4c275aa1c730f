"""Both doors: each request has its line, the id that a client was told is found in the log, and content never is."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import httpx2
import pytest
from google.rpc import error_details_pb2, status_pb2

from loramux.v1 import inference_pb2
from loramux_server.core.backend import GenerateCommand
from loramux_server.core.callers.quota import Quota, Quotas
from loramux_server.http.exchanges.limits import Limits
from loramux_server.http.routes import METHODS as OPERATIONS
from loramux_server.services.availability import Readiness
from loramux_server.services.common.context import Context
from tests.unit.logged import Logged
from tests.unit.services.fakes import Script
from tests.unit.services.json_caller import open_json_world
from tests.unit.services.tenants import Caller, World, adapter_files

from .test_native import script

MARK = "zq7mark"
"""In everything that nobody but its sender may read."""
GENERATE = "/loramux.v1.InferenceService/Generate"
ASK = {"prompt": MARK, "max_tokens": 3}


@pytest.fixture
async def world(context: Context) -> AsyncIterator[World]:
    async with open_json_world(context) as opened:
        opened.backend.script = lambda command: Script((5, 6, 7))
        yield opened


def client_of(world: World) -> httpx2.AsyncClient:
    client = world.caller("ann").http  # type: ignore[attr-defined]
    assert isinstance(client, httpx2.AsyncClient)
    return client


async def test_every_method_has_one_line_over_each_door(world: World, logged: Logged, context: Context) -> None:
    logged.start("debug")
    for door, caller in (
        ("grpc", Caller("ann's operator", world.channel)),
        ("http", world.caller("operator")),
    ):
        answers: dict[str, Any] = {}
        for method, make in script({**adapter_files(context), "README.md": b"# acme\n"}):
            answers[method] = (await caller.call(method, make(answers)))[0]
            (line,) = logged.events("request")
            assert (line["door"], line["method"], line["code"]) == (door, method.partition("/")[2], "OK")
            assert line["request_id"] == "the-same"
            assert line["tenant"] == {"grpc": "ann", "http": "operations"}[door]
            assert line["level"] == ("debug" if method.startswith("ServerService/Get") else "info")
            assert ("prompt_tokens" in line) == method.endswith(("Generate", "GenerateOnce", "Score", "Embed"))


async def over_grpc(world: World, request: dict[str, Any], caller: str = "ann", timeout: float | None = 20) -> str:
    """Generate; gives the id that the caller was told in the end."""
    call = world.channel.unary_unary(GENERATE)(
        inference_pb2.GenerateRequest(**request).SerializeToString(),
        metadata=(("authorization", caller),),
        timeout=timeout,
    )
    with pytest.raises(grpc.RpcError):
        await call
    trailing = dict(await call.trailing_metadata() or ())
    id = str(trailing["x-request-id"])
    status = status_pb2.Status.FromString(trailing["grpc-status-details-bin"])
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert info.metadata["request_id"] == id
    return id


async def over_json(world: World, request: dict[str, Any], caller: str = "ann") -> str:
    answer = await client_of(world).post(
        "/loramux.v1.InferenceService/GenerateOnce", json=request, headers={"authorization": caller}
    )
    assert answer.status_code >= 400
    assert answer.json()["details"][0]["debug"]["metadata"]["request_id"] == answer.headers["x-request-id"]
    return str(answer.headers["x-request-id"])


async def over_openai(world: World, request: dict[str, Any], caller: str = "ann") -> str:
    body = {"model": "base", **request}
    answer = await client_of(world).post("/v1/completions", json=body, headers={"authorization": caller})
    assert answer.status_code >= 400
    return str(answer.headers["x-request-id"])


async def over_anthropic(world: World, request: dict[str, Any], caller: str = "ann") -> str:
    body = {"model": "base", "messages": [{"role": "user", "content": request["prompt"]}], "max_tokens": 3}
    body |= {key: value for key, value in request.items() if key not in ("prompt", "max_tokens")}
    answer = await client_of(world).post("/v1/messages", json=body, headers={"authorization": caller})
    assert answer.status_code >= 400
    assert answer.json()["request_id"] == answer.headers["request-id"]
    return str(answer.headers["request-id"])


WAYS: dict[str, tuple[str, Callable[..., Any]]] = {
    "grpc": ("Generate", over_grpc),
    "json": ("GenerateOnce", over_json),
    "openai": ("createCompletion", over_openai),
    "anthropic": ("createMessage", over_anthropic),
}


def break_the_engine(world: World) -> None:
    def broken(command: GenerateCommand) -> Script:
        raise KeyError("no such page")

    world.backend.script = broken


def start_again(world: World) -> None:
    world.availability.readiness = Readiness.LOADING


def use_up_the_quota(world: World) -> None:
    world.context.meter.quotas = Quotas({"*": Quota(requests_per_minute=0)})


@pytest.mark.parametrize(
    ("outcome", "caller", "request_body", "prepare"),
    [
        ("UNAUTHENTICATED", "nobody", ASK, None),
        ("INVALID_ARGUMENT", "ann", {**ASK, "temperature": 99}, None),
        ("NOT_FOUND ADAPTER_NOT_FOUND", "ann", {**ASK, "model": "absent"}, None),
        ("INTERNAL", "ann", ASK, break_the_engine),
        ("UNAVAILABLE NOT_READY", "ann", ASK, start_again),
        ("RESOURCE_EXHAUSTED QUOTA_EXCEEDED", "ann", ASK, use_up_the_quota),
    ],
)
@pytest.mark.parametrize("way", WAYS)
async def test_the_id_of_each_failing_call_is_found(
    way: str,
    outcome: str,
    caller: str,
    request_body: dict[str, Any],
    prepare: Callable[[World], None] | None,
    world: World,
    logged: Logged,
) -> None:
    method, send = WAYS[way]
    request = dict(request_body)
    if way in ("grpc", "json") and (name := request.pop("model", "")):
        request["adapters"] = [{"adapter": name}]
    if prepare is not None:
        prepare(world)
    logged.start()
    id = await send(world, request, caller)
    events = [event for event in logged.events() if event.get("request_id") == id]
    (line,) = [event for event in events if event["event"] == "request"]
    assert " ".join(filter(None, (line["code"], line.get("reason")))) == outcome
    assert (line["method"], line.get("tenant", "")) == (method, "" if caller == "nobody" else "ann")
    assert line["door"] == ("grpc" if way == "grpc" else "http")
    failed = [event for event in events if event["event"] == "call failed"]
    assert len(failed) == (outcome == "INTERNAL")
    for event in failed:
        assert event["exception"].startswith("Traceback")
        assert event["exception"].endswith("KeyError: 'no such page'")
        assert len(event["error_id"]) == 12


async def test_calls_that_their_clients_end_have_a_line(world: World, logged: Logged) -> None:
    world.backend.script = lambda command: Script((5, 6), hang=True)
    logged.start()
    request = inference_pb2.GenerateRequest(prompt=MARK, request_id="mine").SerializeToString()
    call = world.channel.unary_stream(GENERATE)(request, metadata=(("authorization", "ann"),))
    await call.read()
    await world.backend.hanging.wait()
    call.cancel()
    assert await the_line(world, logged) == ("CANCELLED", "grpc", 2)
    late = world.channel.unary_stream(GENERATE)(request, metadata=(("authorization", "ann"),), timeout=0.5)
    with pytest.raises(grpc.RpcError):
        [_ async for _ in late]
    assert await the_line(world, logged) == ("DEADLINE_EXCEEDED", "grpc", 2)
    body = {"prompt": MARK, "requestId": "mine"}
    headers = {"authorization": "ann", "connect-timeout-ms": "300"}
    await client_of(world).post("/loramux.v1.InferenceService/GenerateOnce", json=body, headers=headers)
    assert await the_line(world, logged) == ("DEADLINE_EXCEEDED", "http", 2)
    world.backend.hanging.clear()
    async with client_of(world).stream("POST", GENERATE, json=body, headers={"authorization": "ann"}) as answer:
        await world.backend.hanging.wait()
        assert answer.status_code == 200
    assert await the_line(world, logged) == ("CANCELLED", "http", 2)


async def the_line(world: World, logged: Logged) -> tuple[str, str, int]:
    """Code, door and tokens of the call that ends now."""
    async with asyncio.timeout(10):
        await world.calls.wait_idle()
    (line,) = logged.events("request")
    assert line["request_id"] == "mine"
    return line["code"], line["door"], line["completion_tokens"]


@pytest.mark.parametrize("sent", ["", "a b", "x" * 129, "ü", 'a"b,code=OK', "a\x1b[2J"])
async def test_an_id_that_is_not_safe_is_replaced(sent: str, world: World, logged: Logged) -> None:
    """What can be in a header and makes an id keeps it; all else is replaced by one of the server's."""
    logged.start(fmt="console")
    headers = [(b"authorization", b"ann"), (b"x-request-id", sent.encode("latin-1"))]
    answer = await client_of(world).post("/v1/completions", json={"model": "base"}, headers=headers)
    (line,) = logged.lines()
    told = answer.headers["x-request-id"]
    assert f" request_id={told} " in line or f' request_id="{told.replace(chr(34), chr(92) + chr(34))}" ' in line
    assert (told == sent) == (sent == 'a"b,code=OK')
    assert " code=INVALID_ARGUMENT " in line
    assert line.isprintable()


async def test_what_is_no_call_has_a_line_too(world: World, logged: Logged) -> None:
    logged.start()
    client = client_of(world)
    for method, path, headers, outcome in (
        ("GET", "/v1/v1/models?key=" + MARK, {}, "NOT_FOUND"),
        ("DELETE", "/v1/completions", {}, "INVALID_ARGUMENT METHOD_NOT_ALLOWED"),
        ("GET", "/v1/models", {"origin": "https://elsewhere.example"}, "PERMISSION_DENIED ORIGIN_REFUSED"),
        ("GET", "/v1/models", {"x": "y" * Limits().max_head}, "RESOURCE_EXHAUSTED HEADERS_TOO_LARGE"),
    ):
        answer = await client.request(method, path, headers=headers)
        (line,) = logged.events()
        assert line["request_id"] == answer.headers["x-request-id"]
        assert " ".join(filter(None, (line["code"], line.get("reason")))) == outcome
        assert (line["event"], line["path"]) == ("request", path.partition("?")[0])
    for path in ("/health", "/health/live", "/version"):
        assert (await client.get(path)).status_code == 200
    assert logged.lines() == []


FILLED = {"model": "base", "max_tokens": 3}
CONTENT: dict[str, Any] = {
    "createChatCompletion": {**FILLED, "messages": [{"role": "user", "content": MARK}], "user": MARK},
    "createCompletion": {**FILLED, "prompt": [MARK, MARK], "stop": MARK, "metadata": {MARK: MARK}},
    "createResponse": {"model": "base", "input": MARK, "instructions": MARK, "max_output_tokens": 3},
    "countInputTokens": {"model": "base", "input": MARK},
    "compactConversation": {"model": "base", "input": MARK},
    "createEmbedding": {"model": "base", "input": [MARK]},
    "createMessage": {**FILLED, "messages": [{"role": "user", "content": MARK}], "system": MARK},
    "countMessageTokens": {"model": "base", "messages": [{"role": "user", "content": MARK}]},
    "createUpload": {"filename": "x.jsonl", "purpose": "fine-tune", "bytes": 9, "mime_type": MARK},
    "createFineTuningJob": {"model": "base", "training_file": "file-x", "metadata": {"x": MARK}, "seed": MARK},
}


async def test_no_line_has_anything_of_a_request(world: World, logged: Logged, context: Context) -> None:
    """Every operation of both doors, and its refusal, at the level debug: no prompt, answer, row, key or token."""
    logged.start("debug")
    answer = context.text.encode(f" {MARK} {MARK}")
    world.backend.script = lambda command: Script(tuple(answer))
    client, secret = client_of(world), f"Bearer sk-{MARK}"
    bad = ({"model": "base", "prompt": MARK, "temperature": MARK}, MARK)
    for operation, (method, path) in OPERATIONS.items():
        for caller, body in [("ann", CONTENT.get(operation)), *(("ann", each) for each in bad), (secret, MARK)]:
            await client.request(
                method,
                path.replace("{model:path}", "absent"),
                json=body if method == "POST" else None,
                headers={"authorization": caller, "user-agent": MARK, "cookie": MARK},
            )
    rows = json.dumps({"prompt": MARK, "completion": MARK}).encode() * 3 + MARK.encode()
    upload = {"file": (f"{MARK}.jsonl", rows)}
    await client.post("/v1/files", files=upload, data={"purpose": "fine-tune"}, headers={"authorization": "ann"})
    files, answers = {**adapter_files(context), "README.md": MARK.encode()}, dict[str, Any]()
    for caller in (Caller("ann's operator", world.channel), Caller(secret, world.channel), world.caller("operator")):
        for method, make in script(files):
            try:
                answers[method] = (await caller.call(method, marked(make(answers))))[0]
            except grpc.RpcError:
                assert caller.name == secret
    text = logged.text()
    lines = [json.loads(line) for line in text.splitlines()]
    done = {line["method"] for line in lines if line.get("code") == "OK"}
    assert done >= {*CONTENT, "ValidateDataset", "GenerateOnce"} - {"createFineTuningJob", "compactConversation"}
    assert any(line.get("code") == "UNAUTHENTICATED" for line in lines)
    assert MARK not in text


def marked(request: Any) -> Any:
    """The request with the mark in each text that is content."""
    for message in request if isinstance(request, list) else [request]:
        for name in ("prompt", "continuation"):
            if getattr(message, name, ""):
                setattr(message, name, f"{MARK} {getattr(message, name)}")
    return request
