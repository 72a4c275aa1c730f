"""What every door gives its calls: a shared limit of generations, a count, an end with a reason."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
import structlog

from loramux_server.api.methods import METHODS as RPC_METHODS
from loramux_server.core.call import current
from loramux_server.core.callers.principal import Principal, Scope
from loramux_server.core.callers.quota import Quota, Quotas
from loramux_server.core.errors import Code, Error
from loramux_server.core.observing.observer import CallFinished, RequestRefused
from loramux_server.core.observing.tracing import Arrival, Attributes, TraceContext
from loramux_server.services.access.access import Access, Incoming
from loramux_server.services.access.credentials import Credentials
from loramux_server.services.access.methods import METHODS, require_all
from loramux_server.services.access.quotas import QuotaMeter
from loramux_server.services.common.calls import Calls, GenerationLimit, request_id
from tests.unit.services.fakes import Open


class Sink:
    def __init__(self) -> None:
        self.ended: list[tuple[str, str]] = []
        self.refused: list[tuple[str, str]] = []

    def call_finished(self, event: CallFinished) -> None:
        self.ended.append((event.method, event.code))

    def quota_refused(self, tenant: str, limit: str) -> None:
        self.refused.append((tenant, limit))

    def request_refused(self, event: RequestRefused) -> None: ...


ACCESS = Access(Open())


def call(method: str = "Generate", service: str = "InferenceService") -> Incoming:
    return Incoming(f"loramux.v1.{service}/{method}", "r1", Credentials())


async def method_of_the_call() -> str:
    return current().method


async def test_doors_share_the_limit_of_generations() -> None:
    sink, limit, release = Sink(), GenerationLimit(1), asyncio.Event()
    one, other = Calls(sink, limit, ACCESS), Calls(sink, limit, ACCESS)
    held = asyncio.create_task(one.answer(call(), release.wait))
    await asyncio.sleep(0)
    assert (one.running, other.running) == (1, 0)
    with pytest.raises(Error) as refused:
        await other.answer(call("Score"), method_of_the_call)
    assert (refused.value.code, refused.value.reason) == (Code.RESOURCE_EXHAUSTED, "QUEUE_FULL")
    assert await other.answer(call("ListJobs", "TrainingService"), method_of_the_call) == "ListJobs"
    release.set()
    await held
    await one.wait_idle()
    assert await other.answer(call("Score"), method_of_the_call) == "Score"
    assert sink.ended == [
        ("Score", "RESOURCE_EXHAUSTED"),
        ("ListJobs", "OK"),
        ("Generate", "OK"),
        ("Score", "OK"),
    ]
    assert limit.running == 0


async def test_calls_that_are_ended_and_defects_have_a_reason() -> None:
    sink = Sink()
    calls = Calls(sink, GenerationLimit(2), ACCESS)
    watch = call("WatchJob", "TrainingService")
    ended = [asyncio.create_task(calls.answer(each, asyncio.Event().wait)) for each in (watch, call("Score"))]
    await asyncio.sleep(0)
    draining = asyncio.create_task(calls.drain(60))
    with pytest.raises(Error, match="shutting down"):
        await ended[0]
    ended[1].cancel()
    await asyncio.wait(ended)
    assert ended[1].cancelled()
    assert await draining == 0

    async def broken() -> None:
        raise KeyError("/secret/path")

    with pytest.raises(Error) as defect:
        await calls.answer(call("Tokenize"), broken)
    assert defect.value.code is Code.INTERNAL
    assert "secret" not in defect.value.message
    assert sink.ended == [("WatchJob", "UNAVAILABLE"), ("Score", "CANCELLED"), ("Tokenize", "INTERNAL")]
    assert calls.running == 0


async def test_calls_of_a_revoked_key_end() -> None:
    class Callers:
        async def authenticate(self, credentials: Credentials) -> Principal:
            return Principal("acme", frozenset(Scope), credentials.peer)

    calls = Calls(sink := Sink(), GenerationLimit(2), Access(Callers()))
    one, other = (replace(call(), credentials=Credentials(peer=key)) for key in ("one", "other"))
    release = asyncio.Event()
    ended, kept = (asyncio.create_task(calls.answer(each, release.wait)) for each in (one, other))
    await asyncio.sleep(0)
    calls.fail_key("one")
    with pytest.raises(Error, match="the key is not valid") as refused:
        await ended
    assert (refused.value.code, refused.value.reason) == (Code.UNAUTHENTICATED, "KEY_INVALID")
    release.set()
    assert await kept
    assert sink.ended == [("Generate", "UNAUTHENTICATED"), ("Generate", "OK")]


def test_an_id_that_cannot_be_one_is_replaced() -> None:
    assert request_id("", "from-metadata") == "from-metadata"
    assert request_id("mine", "from-metadata") == "mine"
    assert len(request_id("a b", "from-metadata")) == len(request_id()) == 32


async def test_a_call_outside_the_keys_scopes_is_refused_before_its_request_is_read() -> None:
    class Trainer:
        async def authenticate(self, credentials: Credentials) -> Principal:
            return Principal("acme", frozenset({Scope.TRAIN}))

    calls = Calls(Sink(), GenerationLimit(2), Access(Trainer()))
    with pytest.raises(Error, match="needs the scope 'infer'") as refused:
        await calls.answer(call(), method_of_the_call)
    assert (refused.value.code, refused.value.reason) == (Code.PERMISSION_DENIED, "SCOPE_MISSING")
    assert await calls.answer(call("ListJobs", "TrainingService"), method_of_the_call) == "ListJobs"
    assert await calls.answer(call("GetServerInfo", "ServerService"), method_of_the_call) == "GetServerInfo"


def test_a_method_without_a_scope_cannot_be_served() -> None:
    require_all(RPC_METHODS)
    with pytest.raises(LookupError, match="InferenceService/Imagine"):
        require_all([*RPC_METHODS, "loramux.v1.InferenceService/Imagine"])


UNCHANGING = ("usage", "get", "list", "retrieve", "watch", "download", "validate", "tokenize", "count")
NOTHING_KEPT = ("deleteResponse", "cancelResponse", "compactConversation")
"""Responses are not stored, so there is nothing that these could change."""


def test_every_method_that_changes_something_is_in_the_audit_log() -> None:
    for path, method in METHODS.items():
        name = path.rpartition("/")[2]
        changes = not (method.generates or name.lower().startswith(UNCHANGING) or name in NOTHING_KEPT)
        assert method.audited == changes, f"{path}: audited must be {changes}"


async def test_a_tenant_that_fills_the_queue_keeps_nobody_else_out() -> None:
    class ByKey:
        async def authenticate(self, credentials: Credentials) -> Principal:
            return Principal(credentials.authorization or "", frozenset(Scope))

    calls, release = Calls(Sink(), GenerationLimit(4), Access(ByKey())), asyncio.Event()

    async def start(tenant: str) -> bool:
        incoming = Incoming("loramux.v1.InferenceService/Generate", "r", Credentials(tenant))
        task = asyncio.create_task(calls.answer(incoming, release.wait))
        tasks.append(task)
        await asyncio.sleep(0)
        return not task.done()

    tasks: list[asyncio.Task[bool]] = []
    assert [await start("flood") for _ in range(6)] == [True] * 4 + [False] * 2
    assert [await start("quiet") for _ in range(3)] == [True, True, False]  # half of the limit, then no more
    assert not await start("flood")
    release.set()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert calls.limit.running == 0


async def test_quotas_refuse_a_call_unread_and_are_counted() -> None:
    sink, meter = Sink(), QuotaMeter()
    meter.quotas = Quotas({"*": Quota(requests_per_minute=1)})
    calls = Calls(sink, GenerationLimit(4), Access(Open(), meter))
    await calls.answer(call("ListJobs", "TrainingService"), method_of_the_call)

    async def unread() -> None:
        raise AssertionError("the request was read")

    with pytest.raises(Error) as refused:
        await calls.answer(call(), unread)
    assert refused.value.reason == "QUOTA_EXCEEDED"
    assert await calls.answer(call("GetServerInfo", "ServerService"), method_of_the_call) == "GetServerInfo"
    assert sink.refused == [("default", "requests_per_minute")]
    assert sink.ended[1] == ("Generate", "RESOURCE_EXHAUSTED")


CALLER = TraceContext("a" * 32, "b" * 16, sampled=True)
OURS = TraceContext("a" * 32, "c" * 16, sampled=True)


class OneSpan:
    """A tracer that has one span, and the span itself."""

    context = OURS

    def __init__(self) -> None:
        self.begun: list[tuple[str, TraceContext | None]] = []
        self.ended: list[tuple[str, Attributes]] = []

    def begin(self, arrival: Arrival, parent: TraceContext | None) -> OneSpan:
        self.begun.append((arrival.name, parent))
        return self

    def end(self, event: CallFinished, answer: Attributes) -> None:
        self.ended.append((event.code, answer))


async def traced_as() -> tuple[TraceContext | None, str | None, str | None]:
    bound = structlog.contextvars.get_contextvars()
    return current().trace, bound.get("trace_id"), bound.get("span_id")


async def test_log_lines_have_the_span_of_the_call_or_else_that_of_the_caller() -> None:
    arrival = Arrival("one", answered=lambda code, error: {"told": code})
    tracer = OneSpan()
    calls = Calls(Sink(), GenerationLimit(1), ACCESS, tracer=tracer)
    asked = replace(call(), trace=CALLER, arrival=arrival)
    assert await calls.answer(asked, traced_as) == (OURS, OURS.trace_id, OURS.span_id)
    assert (tracer.begun, tracer.ended) == ([("one", CALLER)], [("OK", {"told": "OK"})])

    calls = Calls(Sink(), GenerationLimit(1), ACCESS)
    assert await calls.answer(asked, traced_as) == (CALLER, CALLER.trace_id, CALLER.span_id)
    structlog.contextvars.clear_contextvars()
    assert await calls.answer(call(), traced_as) == (None, None, None)
