"""Quotas of calls: rates, what runs and what waits, tokens taken before and given back after, exactly once."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack, aclosing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loramux_server.core.callers.principal import Principal, Scope
from loramux_server.core.callers.quota import LIMITS, Quota, Quotas
from loramux_server.core.errors import Code, Error
from loramux_server.core.types import SamplingParams
from loramux_server.services.access.buckets import Bucket
from loramux_server.services.access.methods import METHODS, Method
from loramux_server.services.access.quota_follower import QuotaFollower
from loramux_server.services.access.quotas import SWEEP_SECONDS, QuotaMeter
from loramux_server.services.common.context import Context
from loramux_server.services.inference.service import GenerationService
from loramux_server.services.inference.types import GenerateRequest, ScoreRequest
from loramux_server.store.store import Store

from .fakes import FakeBackend, Script

ACME = Principal("acme", frozenset(Scope), "k1")
GENERATE, LIST = METHODS["loramux.v1.InferenceService/Generate"], METHODS["loramux.v1.AdapterService/ListAdapters"]


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def meter(clock: Clock | None = None, **limits: Quota) -> QuotaMeter:
    """Limits by subject, with ``_`` for the colon; ``everybody`` is ``*``."""
    found = QuotaMeter(clock or Clock())
    found.quotas = Quotas({"*" if s == "everybody" else s.replace("_", ":"): quota for s, quota in limits.items()})
    return found


def refused(meter: QuotaMeter, method: Method = GENERATE, principal: Principal = ACME) -> Error:
    with pytest.raises(Error) as caught, meter.admit(principal, method):
        pass
    assert (caught.value.code, caught.value.reason) == (Code.RESOURCE_EXHAUSTED, "QUOTA_EXCEEDED")
    return caught.value


def take(meter: QuotaMeter, method: Method = GENERATE, principal: Principal = ACME) -> None:
    with meter.admit(principal, method):
        pass


def test_requests_flow_back_evenly_and_the_caller_is_told_when() -> None:
    clock = Clock()
    quotas = meter(clock, tenant_acme=Quota(requests_per_minute=60))
    for _ in range(60):
        take(quotas, LIST)
    error = refused(quotas, LIST)
    assert error.retry_after == pytest.approx(1.0)
    assert error.exceeded is not None
    assert (error.exceeded.limit, error.exceeded.value) == ("requests_per_minute", 60)
    assert [v.field for v in error.violations] == ["tenant:acme"]
    assert "requests per minute is limited to 60: 60 in use, 1 more asked for" in error.message
    clock.now += error.retry_after or 0
    take(quotas, LIST)
    refused(quotas, LIST)
    clock.now += 3600.0  # an hour of quiet saves up one minute, no more
    for _ in range(60):
        take(quotas, LIST)
    refused(quotas, LIST)


def test_the_strictest_of_tenant_and_key_holds_and_each_is_counted_apart() -> None:
    quotas = meter(tenant_acme=Quota(requests_per_minute=3), key_k1=Quota(requests_per_minute=2))
    take(quotas)
    take(quotas)
    assert refused(quotas).violations[0].field == "key:k1"
    other = Principal("acme", frozenset(Scope), "k2")
    take(quotas, principal=other)
    assert refused(quotas, principal=other).violations[0].field == "tenant:acme"


def test_tenants_under_the_limits_of_everybody_are_counted_apart() -> None:
    quotas = meter(everybody=Quota(requests_per_minute=1))
    take(quotas)
    assert refused(quotas).violations[0].field == "tenant:acme"
    take(quotas, principal=Principal("pine", frozenset(Scope)))


def test_a_refused_call_takes_nothing_from_any_limit() -> None:
    quotas = meter(tenant_acme=Quota(requests_per_minute=2), key_k1=Quota(concurrent=0))
    for _ in range(5):
        assert refused(quotas).violations[0].field == "key:k1"
    take(quotas, LIST)
    take(quotas, LIST)


def test_asking_who_the_server_is_never_counts() -> None:
    quotas = meter(everybody=Quota(requests_per_minute=0))
    take(quotas, METHODS["loramux.v1.ServerService/GetServerInfo"])
    error = refused(quotas, LIST)
    assert error.retry_after is None
    assert [name for name, method in METHODS.items() if not method.counted] == [
        "loramux.v1.ServerService/GetServerInfo",
        "loramux.v1.ServerService/GetStats",
    ]


def test_running_and_waiting_generations_are_counted_until_they_end() -> None:
    quotas = meter(tenant_acme=Quota(concurrent=3, queued=2))
    with ExitStack() as calls:
        one, two = (calls.enter_context(quotas.admit(ACME, GENERATE)) for _ in range(2))
        error = refused(quotas)
        assert (error.exceeded and error.exceeded.limit, error.retry_after) == ("queued", 1.0)
        take(quotas, LIST)  # which no engine answers
        one.answered()
        one.answered()
        calls.enter_context(quotas.admit(ACME, GENERATE))
        two.answered()
        error = refused(quotas)
        assert error.exceeded
        assert error.exceeded.limit == "concurrent"
    take(quotas)


def test_limits_that_change_hold_at_once_and_what_is_used_stays_used() -> None:
    clock = Clock()
    quotas = meter(clock)
    with quotas.admit(ACME, GENERATE):
        quotas.quotas = Quotas({"*": Quota(concurrent=1, requests_per_minute=10)})
        refused(quotas)  # counts what came before there was a limit
    for _ in range(8):
        take(quotas)
    quotas.quotas = Quotas({"*": Quota(requests_per_minute=4)})
    assert refused(quotas).retry_after == pytest.approx(75.0)  # 8 used of 4: five of 15 s each
    quotas.quotas = Quotas({"*": Quota(requests_per_minute=10)})
    take(quotas)
    quotas.quotas = Quotas({})
    for _ in range(50):
        take(quotas)


def test_tokens_are_reserved_whole_and_a_request_that_never_fits_says_so() -> None:
    quotas = meter(tenant_acme=Quota(tokens_per_minute=600))
    with quotas.reserve(ACME, 400) as one:
        with pytest.raises(Error) as caught:
            quotas.reserve(ACME, 300)
        assert caught.value.retry_after == pytest.approx(10.0)
        one.spent = 50
    with quotas.reserve(ACME, 550):
        pass
    with pytest.raises(Error, match="asks for 601 at once: it can never be granted") as caught:
        quotas.reserve(ACME, 601)
    assert caught.value.retry_after is None


def test_a_reservation_is_given_back_once_and_never_above_the_limit() -> None:
    clock = Clock()
    quotas = meter(clock, tenant_acme=Quota(tokens_per_minute=600))
    reservation = quotas.reserve(ACME, 600)
    clock.now += 30.0
    with reservation:
        pass
    with reservation:
        pass
    with pytest.raises(Error, match="never"):
        quotas.reserve(ACME, 601)
    with quotas.reserve(ACME, 600):
        pass


@given(st.lists(st.tuples(st.integers(0, 400), st.floats(0, 30), st.integers(0, 400)), max_size=40))
def test_no_order_of_requests_gets_more_than_two_minutes_worth_in_one(steps: list[tuple[int, float, int]]) -> None:
    now, bucket, taken = 0.0, Bucket(600, 0.0), list[tuple[float, int]]()
    for amount, later, _ in steps:
        if bucket.wait(amount, now) == 0:
            bucket.take(amount, now)
            taken.append((now, amount))
        else:
            then = now + bucket.wait(amount, now)
            assert bucket.wait(amount, then) <= 1e-6
        now += later
    for start, _ in taken:
        assert sum(amount for at, amount in taken if start <= at < start + 60) <= 1200 + 1


def test_tenants_that_are_idle_are_forgotten() -> None:
    clock = Clock()
    quotas = meter(clock, everybody=Quota(requests_per_minute=60))
    for i in range(500):
        take(quotas, principal=Principal(f"tenant-{i}", frozenset(Scope)))
    with quotas.admit(ACME, GENERATE):
        clock.now += SWEEP_SECONDS
        take(quotas, principal=Principal("pine", frozenset(Scope)))
        assert quotas.subjects == 2
        assert refused(meter(everybody=Quota(concurrent=0)))


async def test_limits_follow_the_database(store: Store) -> None:
    quotas = QuotaMeter()
    follower = QuotaFollower(quotas, store.quotas, store.quota_use)
    store.quotas.set("*", {"concurrent": 0})
    assert await follower.refresh()
    refused(quotas)
    assert not await follower.refresh()


def request(max_tokens: int = 8, n: int = 1, **given: object) -> GenerateRequest:
    return GenerateRequest(prompt="the end", sampling=SamplingParams(max_tokens=max_tokens), n=n, principal=ACME)


@pytest.fixture
def service(context: Context) -> GenerationService:
    return GenerationService(context)


def tokens_left(context: Context) -> int:
    """What the tenant may still ask for now."""
    left = 0
    for step in (512, 256, 128, 64, 32, 16, 8, 4, 2, 1):
        try:
            with context.meter.reserve(ACME, left + step):
                left += step
        except Error:
            pass
    return left


@pytest.fixture
def limited(context: Context) -> Context:
    context.meter._clock = Clock()
    context.meter.quotas = Quotas({"*": Quota(tokens_per_minute=1000)})
    return context


async def test_an_answer_costs_its_prompt_and_its_tokens(
    limited: Context, service: GenerationService, backend: FakeBackend
) -> None:
    backend.script = lambda _: Script((5, 6, 7))
    answer = await service.generate_once(request(max_tokens=200, n=2))
    assert answer.usage.completion_tokens == 6
    assert tokens_left(limited) == 1000 - answer.usage.prompt_tokens - 6


async def test_what_could_be_generated_is_taken_before_the_engine_is_asked(
    limited: Context, service: GenerationService, backend: FakeBackend
) -> None:
    backend.script = lambda _: Script((5,), hang=True)
    async with aclosing(service.generate(request(max_tokens=100, n=2))) as chunks:
        await anext(chunks)
        prompt = len(backend.commands[0].prompt_ids)
        assert tokens_left(limited) == 1000 - prompt - 200
        limited.meter.quotas = Quotas({"*": Quota(tokens_per_minute=250)})
        asked = len(backend.commands)
        with pytest.raises(Error, match="tokens per minute"):
            await service.generate_once(request(max_tokens=100))
        assert len(backend.commands) == asked
        limited.meter.quotas = Quotas({"*": Quota(tokens_per_minute=1000)})
    assert tokens_left(limited) in (1000 - prompt - 1, 1000 - prompt - 2)  # one token of either choice, or of both


@pytest.mark.parametrize("how", ["cancelled", "failed", "refused"])
async def test_tokens_come_back_whichever_way_a_request_ends(
    limited: Context, service: GenerationService, backend: FakeBackend, how: str
) -> None:
    lost = Error(Code.UNAVAILABLE, "the engine died")
    backend.script = lambda _: Script((5,), hang=how == "cancelled", raises=lost if how == "failed" else None)
    task = asyncio.create_task(service.generate_once(request(max_tokens=0 if how == "refused" else 100)))
    if how == "cancelled":
        await backend.hanging.wait()
        task.cancel()
    await asyncio.wait([task])
    assert task.cancelled() or isinstance(task.exception(), Error)
    spent = 0 if how == "refused" else len(backend.commands[0].prompt_ids) + 1
    assert tokens_left(limited) == 1000 - spent


async def test_the_first_token_ends_the_wait_of_a_generation(
    limited: Context, service: GenerationService, backend: FakeBackend
) -> None:
    backend.script = lambda _: Script((5,), hang=True)
    limited.meter.quotas = Quotas({"*": Quota(queued=1)})
    with limited.meter.admit(ACME, GENERATE):
        refused(limited.meter)
        async with aclosing(service.generate(request())) as chunks:
            await anext(chunks)
            with limited.meter.admit(ACME, GENERATE):
                pass


async def test_a_score_costs_all_its_tokens(limited: Context, service: GenerationService) -> None:
    score = await service.score(ScoreRequest(prompt="the", continuation=" end", principal=ACME))
    assert tokens_left(limited) == 1000 - score.prompt_tokens - len(score.token_ids)
    limited.meter.quotas = Quotas({"*": Quota(tokens_per_minute=0)})
    with pytest.raises(Error, match="never be granted"):
        await service.score(ScoreRequest(prompt="the", continuation=" end", principal=ACME))


def test_every_limit_is_documented_by_a_field() -> None:
    assert set(LIMITS) == set(Quota.__slots__)
