"""The line of a call: its fields, when there is one, and how a storm of refusals is told."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from loramux_server.core.backend import SequenceTimes
from loramux_server.core.call import Call
from loramux_server.core.callers.principal import Principal
from loramux_server.core.jobs import JobState
from loramux_server.core.observing.observer import CallFinished, JobMoved, RequestFinished, RequestRefused
from loramux_server.core.types import BASE, AdapterVersion, FinishReason, Stack, StackEntry
from loramux_server.telemetry.logs import storms
from loramux_server.telemetry.logs.jobs import JobLog
from loramux_server.telemetry.logs.requests import MOST_PATH, RequestLog, stack_text
from loramux_server.telemetry.logs.storms import MOST
from tests.unit.logged import Logged

STACK = Stack((StackEntry(AdapterVersion("acme", 3, "d1", 8), 0.5), StackEntry(AdapterVersion("sql", 1, "d2", 8))))
CALL = Call("Generate", "r1", Principal("acme", frozenset(), "7f3a"), peer="ipv4:10.0.0.9:1")


def finished(call: Call | None, *, duration: float = 2.0, **more: object) -> RequestFinished:
    made = RequestFinished("r1", "generate", "acme", STACK, 10, 5, 4, duration, (FinishReason.STOP,), "OK", call=call)
    return replace(made, **more)  # type: ignore[arg-type]


def ended(call: Call | None, code: str = "OK", reason: str = "", seconds: float = 2.5, **more: object) -> CallFinished:
    made = CallFinished("grpc", "Generate", "r1", call, "ipv4:10.0.0.9:1", code, reason, seconds)
    return replace(made, **more)  # type: ignore[arg-type]


def a_call() -> Call:
    return Call(CALL.method, CALL.request_id, CALL.principal, peer=CALL.peer)


def test_a_call_has_one_line_with_what_it_took(logged: Logged) -> None:
    logged.start()
    log, call = RequestLog(), a_call()
    log.request_finished(finished(call, duration=1.0, stack=BASE, finish_reasons=(FinishReason.LENGTH,)))
    times = SequenceTimes(waiting=0.25, loading=0.125, prefill=0.5, decode=1.0, preempted=2)
    log.request_finished(finished(call, time_to_first_token=0.8125, preparation=0.0625, times=times))
    log.request_finished(finished(None))  # the server's own: of no call
    call.work.sending = 0.03125
    log.call_finished(ended(call, seconds=2.123456))
    (event,) = logged.events()
    assert event.pop("timestamp").endswith("Z")
    assert event == {
        "level": "info",
        "logger": "loramux_server.telemetry.logs.requests",
        "event": "request",
        "request_id": "r1",
        "door": "grpc",
        "method": "Generate",
        "code": "OK",
        "seconds": 2.1235,
        "tenant": "acme",
        "key_id": "7f3a",
        "adapters": "acme@3:0.5+sql@1:1",
        "prompt_tokens": 20,
        "completion_tokens": 10,
        "cached_tokens": 8,
        "finish_reason": "length+stop",
        "first_token_seconds": 0.8125,
        "preparation_seconds": 0.0625,
        "queue_seconds": 0.25,
        "adapter_load_seconds": 0.125,
        "prefill_seconds": 0.5,
        "decode_seconds": 1.0,
        "preemptions": 2,
        "sending_seconds": 0.0312,
    }
    assert stack_text(BASE) == "base"


def test_addresses_are_told_only_where_they_are_wanted(logged: Logged) -> None:
    logged.start()
    for wanted in (False, True):
        RequestLog(addresses=wanted).call_finished(ended(a_call()))
    assert [event.get("client") for event in logged.events()] == [None, "ipv4:10.0.0.9:1"]


@pytest.mark.parametrize(
    ("level", "every", "seconds", "more", "found"),
    [
        ("info", True, 1.0, {}, "info request"),
        ("info", True, 9.0, {}, "warning slow request"),
        ("info", True, 9.0, {"follows_a_job": True}, "info request"),
        ("info", True, 1.0, {"of_the_server": True}, None),
        ("debug", True, 1.0, {"of_the_server": True}, "debug request"),
        ("info", True, 1.0, {"of_the_server": True, "code": "INTERNAL"}, "info request"),
        ("info", False, 1.0, {}, None),
        ("info", False, 9.0, {}, "warning slow request"),
        ("warning", True, 1.0, {}, None),
        ("warning", True, 9.0, {}, "warning slow request"),
        ("error", True, 9.0, {}, None),
    ],
)
def test_which_calls_have_a_line(
    logged: Logged, level: str, every: bool, seconds: float, more: dict[str, object], found: str | None
) -> None:
    logged.start(level)
    log = RequestLog(every=every, slow_seconds=5.0)
    log.call_finished(ended(a_call(), **{"seconds": seconds, **more}))  # type: ignore[arg-type]
    assert [f"{event['level']} {event['event']}" for event in logged.events()] == ([] if found is None else [found])


async def test_a_storm_of_refusals_is_told_in_numbers(logged: Logged) -> None:
    logged.start()
    log, acme = RequestLog(), a_call()
    for _ in range(2000):
        log.call_finished(ended(None, "UNAUTHENTICATED", "KEY_INVALID"))
    for _ in range(MOST + 1):
        log.call_finished(ended(acme, "RESOURCE_EXHAUSTED", "QUOTA_EXCEEDED"))
        log.call_finished(ended(acme, "CANCELLED"))
    for _ in range(MOST + 30):  # what went well, and defects, are told one by one
        log.call_finished(ended(acme))
        log.call_finished(ended(acme, "INTERNAL", "INTERNAL"))
    worked = a_call()
    log.request_finished(finished(worked))
    for _ in range(MOST + 30):  # so is what cost the engine something
        log.call_finished(ended(worked, "CANCELLED"))
    log.close()
    events = logged.events()
    untold = {event["reason"]: event for event in events if event["event"] == "refused requests without a line"}
    assert {reason: event["requests"] for reason, event in untold.items()} == {
        "KEY_INVALID": 2000 - MOST,
        "QUOTA_EXCEEDED": 1,
        "CANCELLED": 1,
    }
    assert untold["QUOTA_EXCEEDED"]["tenant"] == "acme"
    assert "tenant" not in untold["KEY_INVALID"]
    assert len(events) == 3 + 3 * MOST + 3 * (MOST + 30)
    log.close()
    assert logged.events() == []


async def test_the_numbers_come_though_the_storm_is_over(logged: Logged, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storms, "WINDOW", 0.05)
    logged.start()
    log = RequestLog()
    for _ in range(MOST + 7):
        log.request_refused(RequestRefused("http", "r1", "/x", "", "NOT_FOUND", "NOT_FOUND"))
    found: list[dict[str, object]] = []
    async with asyncio.timeout(10):
        while not found:
            await asyncio.sleep(0.01)
            found = logged.events("refused requests without a line")
    assert [event["requests"] for event in found] == [7]
    log.request_refused(RequestRefused("http", "r2", "/x", "", "NOT_FOUND", "NOT_FOUND"))
    assert [event["request_id"] for event in logged.events()] == ["r2"]  # a window of its own
    log.close()


async def test_a_path_that_leads_nowhere_is_told_in_part(logged: Logged) -> None:
    logged.start()
    log = RequestLog()
    log.request_refused(RequestRefused("http", "r1", "/v1/v1/models" + "x" * 5000, "", "NOT_FOUND", "NOT_FOUND"))
    (event,) = logged.events()
    assert (event["door"], event["code"], event["path"][:13]) == ("http", "NOT_FOUND", "/v1/v1/models")
    assert len(event["path"]) < MOST_PATH + 30
    log.close()


def test_each_state_of_a_job_is_a_line(logged: Logged) -> None:
    logged.start()
    log, job = JobLog(), JobMoved("job-1", "acme", "t1", None, JobState.QUEUED, at=100.0, created=100.0)
    log.job_moved(job)
    figures = {"loss": 1.23456, "eval_loss": 0.5, "tokens": 9.0}
    ran = replace(job, old=JobState.PUBLISHING, at=160.25, attempt=2, step=8, total_steps=8, metrics=figures)
    log.job_moved(replace(ran, new=JobState.SUCCEEDED, adapter="acme@4"))
    log.job_moved(replace(ran, new=JobState.FAILED, error_code="OUT_OF_MEMORY", error="out of memory"))
    queued, done, failed = ({k: v for k, v in each.items() if k != "timestamp"} for each in logged.events("job"))
    head = {"event": "job", "logger": "loramux_server.telemetry.logs.jobs", "job_id": "job-1", "tenant": "t1"}
    assert queued == {**head, "level": "info", "state": "queued", "adapter": "acme", "seconds": 0.0}
    work = {"before": "publishing", "attempt": 2, "step": 8, "total_steps": 8, "loss": 1.2346, "eval_loss": 0.5}
    assert done == {**head, "level": "info", "state": "succeeded", "adapter": "acme@4", "seconds": 60.2, **work}
    why = {"reason": "OUT_OF_MEMORY", "error": "out of memory"}
    assert failed == {**head, **work, **why, "level": "warning", "state": "failed", "adapter": "acme", "seconds": 60.2}
