"""The front's end of the engine over a scripted link: what it sends, and how every stream ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from contextlib import aclosing
from random import Random

import pytest

from loramux_server.core.backend import (
    EngineInfo,
    EnginePhase,
    EngineState,
    EngineStats,
    GenerateCommand,
    ReplicaState,
    ScoreCommand,
    ScoreResult,
    SequenceTimes,
    TokenEvent,
)
from loramux_server.core.errors import Code, Error
from loramux_server.core.jobs import TrainCommand, TrainEvent, TrainEventType, TrainSpec
from loramux_server.core.types import AdapterVersion, FinishReason, TokenLogprob
from loramux_server.engine.transport.client import EngineClient
from loramux_server.engine.transport.protocol import (
    AbortCommand,
    Command,
    Failure,
    LoadCommand,
    Output,
    StatsCommand,
    UnloadCommand,
    command_id,
)
from tests.rows import NO_ROWS

INFO = EngineInfo("base", "f00d", "Llama", 10, 20, (1,), "cpu", "float32", 1, {}, "")
Script = Callable[[Command], Iterable[Output]]


class ScriptedLink:
    """Answers each command with what ``script`` gives for it, at once."""

    def __init__(self, script: Script = lambda _: ()) -> None:
        self.script, self.sent, self.closed = script, list[Command](), False
        self.calls: asyncio.Queue[Command] = asyncio.Queue()
        self.client: EngineClient | None = None

    async def start(self, client: EngineClient) -> EngineInfo:
        self.client = client
        return INFO

    def send(self, command: Command) -> None:
        assert self.client is not None
        self.sent.append(command)
        self.calls.put_nowait(command)
        self.client.deliver(list(self.script(command)))

    async def close(self) -> None:
        self.closed = True

    @property
    def aborted(self) -> list[str]:
        return [c.id for c in self.sent if isinstance(c, AbortCommand)]


async def started(script: Script = lambda _: ()) -> tuple[EngineClient, ScriptedLink]:
    link = ScriptedLink(script)
    client = EngineClient(link)
    assert await client.start() == INFO
    return client, link


def token(id: str, value: int, last: bool = False) -> Output:
    return Output(id, TokenEvent(id, (value,), finish_reason=FinishReason.LENGTH if last else None), done=last)


GENERATE = GenerateCommand("g", (1, 2), tenant="default")
TRAIN = TrainCommand("j", TrainSpec(), NO_ROWS)


async def test_a_stream_ends_after_its_last_event() -> None:
    client, link = await started(lambda c: [token("g", 5)])
    events = []
    async for event in client.generate(GENERATE):
        events.append(event)
        if len(events) == 1:
            client.deliver([token("g", 6, last=True)])
    assert [(e.token_ids, e.finish_reason) for e in events] == [((5,), None), ((6,), FinishReason.LENGTH)]
    assert link.sent == [GENERATE]
    assert not client.in_flight


async def test_tokens_that_came_while_the_reader_was_busy_are_one_event() -> None:
    times = SequenceTimes(waiting=0.1, loading=0.0, prefill=0.2)
    first = Output("g", TokenEvent("g", (5,), (TokenLogprob(5, -0.5),), cached_tokens=16, times=times))
    second = Output("g", TokenEvent("g", (6, 7), (TokenLogprob(6, -1.0), TokenLogprob(7, -2.0))))
    client, link = await started(lambda c: [first, second, token("g", 8, last=True)])
    (event,) = [e async for e in client.generate(GENERATE)]
    assert event == TokenEvent(
        "g",
        (5, 6, 7, 8),
        (TokenLogprob(5, -0.5), TokenLogprob(6, -1.0), TokenLogprob(7, -2.0)),
        FinishReason.LENGTH,
        cached_tokens=16,
        times=times,
    )
    assert link.aborted == []


async def test_a_failure_behind_tokens_comes_after_them() -> None:
    gone = Error(Code.UNAVAILABLE, "gone")
    failure = Output("g", failure=Failure.of(gone), done=True)
    client, _ = await started(lambda c: [token("g", 5), token("g", 6), failure])
    events = client.generate(GENERATE)
    assert (await anext(events)).token_ids == (5, 6)
    with pytest.raises(Error) as caught:
        await anext(events)
    assert caught.value.code is Code.UNAVAILABLE
    assert not client.in_flight


async def test_events_of_training_are_never_joined() -> None:
    steps = [Output("j", TrainEvent(TrainEventType.STEP, step=i), done=i == 2) for i in range(3)]
    client, _ = await started(lambda c: steps)
    assert [e.step async for e in client.train(TRAIN)] == [0, 1, 2]


@pytest.mark.parametrize("command", [GENERATE, TRAIN])
async def test_closing_early_has_sent_the_abort_when_it_returns(command: GenerateCommand | TrainCommand) -> None:
    event = {
        "g": Output("g", TokenEvent("g", (1,))),
        "j": Output("j", TrainEvent(TrainEventType.STEP, step=1)),
    }
    client, link = await started(lambda c: [event[command_id(c)]] if not isinstance(c, AbortCommand) else [])
    stream = client.generate(command) if isinstance(command, GenerateCommand) else client.train(command)
    async with aclosing(stream) as events:  # type: ignore[type-var]
        async for _ in events:
            break
    assert link.aborted == [command_id(command)]
    assert not client.in_flight


async def test_a_stream_closed_before_its_first_event_sends_nothing() -> None:
    client, link = await started()
    stream = client.generate(GENERATE)
    await stream.aclose()  # type: ignore[attr-defined]
    assert link.sent == []


async def test_cancelling_the_reader_aborts() -> None:
    client, link = await started()

    async def read() -> None:
        async for _ in client.generate(GENERATE):
            pass

    task = asyncio.create_task(read())
    await link.calls.get()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert link.aborted == ["g"]
    link.client.deliver([token("g", 1)])  # type: ignore[union-attr]  # what was on its way is dropped
    assert not client.in_flight


async def test_cancelling_a_call_aborts_it() -> None:
    client, link = await started()
    task = asyncio.create_task(client.score(ScoreCommand("s", (1,), (2,), tenant="default")))
    await link.calls.get()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert link.aborted == ["s"]


async def test_a_failure_becomes_its_error_and_is_not_aborted() -> None:
    error = Error(Code.RESOURCE_EXHAUSTED, "full", reason="QUEUE_FULL", retry_after=1.5)
    client, link = await started(lambda c: [token("g", 5), Output("g", failure=Failure.of(error), done=True)])
    stream = client.generate(GENERATE)
    assert (await anext(stream)).token_ids == (5,)
    with pytest.raises(Error) as raised:
        await anext(stream)
    got = raised.value
    assert (got.code, got.message, got.reason, got.retry_after) == (error.code, "full", "QUEUE_FULL", 1.5)
    assert link.aborted == []
    assert not client.in_flight


async def test_one_id_at_a_time() -> None:
    client, link = await started()
    task = asyncio.create_task(anext(aiter(client.generate(GENERATE))))  # type: ignore[arg-type]
    await link.calls.get()
    with pytest.raises(Error) as raised:
        await anext(aiter(client.generate(GENERATE)))
    assert raised.value.code is Code.ALREADY_EXISTS
    assert link.sent == [GENERATE]
    client.deliver([token("g", 3, last=True)])
    assert (await task).token_ids == (3,)


async def test_calls_give_their_answer() -> None:
    stats, score = EngineStats(running=3), ScoreResult((-0.5,), (True,))

    def script(command: Command) -> list[Output]:
        match command:
            case StatsCommand():
                return [Output(command.id, stats, done=True)]
            case ScoreCommand():
                return [Output(command.id, score, done=True)]
            case _:
                return [Output(command_id(command), done=True)]

    client, link = await started(script)
    version = AdapterVersion("a", 1, "d" * 64, 8)
    assert await client.stats() == stats
    assert await client.score(ScoreCommand("s", (1,), (2,), tenant="default")) == score
    await client.load(version)
    await client.unload("x")
    kinds = [type(c) for c in link.sent]
    assert kinds == [StatsCommand, ScoreCommand, LoadCommand, UnloadCommand]
    assert len({command_id(c) for c in link.sent}) == 4
    assert not client.in_flight


async def test_when_the_engine_is_gone_everything_open_fails() -> None:
    client, link = await started()

    async def read() -> None:
        async for _ in client.generate(GENERATE):
            pass

    tasks = [asyncio.create_task(read()), asyncio.create_task(client.stats())]
    for _ in tasks:
        await link.calls.get()
    client.fail_all(Error(Code.UNAVAILABLE, "the engine stopped"))
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        assert isinstance(result, Error)
        assert result.code is Code.UNAVAILABLE
    assert not client.in_flight
    assert link.aborted == []


async def test_closing_fails_what_is_open() -> None:
    client, link = await started()
    task = asyncio.create_task(client.stats())
    await link.calls.get()
    await client.close()
    assert link.closed
    with pytest.raises(Error):
        await task


async def test_a_slow_reader_loses_nothing() -> None:
    client, _ = await started(lambda c: [token("g", i, last=i == 99) for i in range(100)])
    got = []
    async for event in client.generate(GENERATE):
        await asyncio.sleep(0)
        got += event.token_ids
    assert got == list(range(100))


async def test_cancelling_while_the_engine_is_gone_is_still_a_cancel() -> None:
    """The link refuses the abort; the task must end as cancelled all the same."""

    def script(command: Command) -> list[Output]:
        if isinstance(command, AbortCommand):
            raise Error(Code.UNAVAILABLE, "starting again")
        return []

    client, link = await started(script)
    task = asyncio.create_task(client.stats())
    await link.calls.get()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not client.in_flight


async def test_a_link_that_refuses_the_command_says_so() -> None:
    def script(command: Command) -> list[Output]:
        raise Error(Code.UNAVAILABLE, "starting again", retry_after=5.0)

    client, _ = await started(script)
    with pytest.raises(Error) as raised:
        await client.stats()
    assert raised.value.retry_after == 5.0
    assert not client.in_flight


async def test_a_thousand_requests_that_leave_at_any_moment_leave_nothing_behind() -> None:
    """Read to the end, closed early or cancelled while they wait: each is aborted once or ended, and no task stays."""
    draw = Random(7)
    client, link = await started()
    before = asyncio.all_tasks()
    begun = asyncio.Event()

    async def read(id: str, most: int) -> None:
        async with aclosing(client.generate(GenerateCommand(id, (1,), tenant="default"))) as events:
            begun.set()
            seen = 0
            async for _ in events:
                seen += 1
                if seen == most:
                    return

    readers: dict[str, asyncio.Task[None]] = {}
    for i in range(1000):
        id = f"r{i}"
        readers[id] = asyncio.create_task(read(id, draw.randint(1, 6)))
        if draw.random() < 0.8:
            await asyncio.sleep(0)
        other = draw.choice(list(readers))
        if draw.random() < 0.6:
            client.deliver([token(other, 5, last=draw.random() < 0.3) for _ in range(draw.randint(1, 3))])
        if draw.random() < 0.3:
            readers[draw.choice(list(readers))].cancel()
    for task in readers.values():
        task.cancel()
    await asyncio.gather(*readers.values(), return_exceptions=True)
    assert begun.is_set()
    assert not client.in_flight
    assert asyncio.all_tasks() == before
    assert len(link.aborted) == len(set(link.aborted))
    sent = [c.id for c in link.sent if isinstance(c, GenerateCommand)]
    assert set(link.aborted) <= set(sent)
    assert 200 < len(link.aborted) < len(sent)


async def test_one_call_is_interrupted_and_aborted() -> None:
    client, link = await started(lambda c: [token("g", 5)])
    events = aiter(client.generate(GENERATE))
    await anext(events)
    client.interrupt("g", Error(Code.UNAVAILABLE, "the replica is drained", reason="REPLICA_LOST"))
    client.interrupt("unknown", Error(Code.UNAVAILABLE, "nobody hears it"))
    with pytest.raises(Error) as lost:
        await anext(events)
    assert lost.value.reason == "REPLICA_LOST"
    assert link.aborted == ["g"]


async def test_the_only_engine_is_listed_and_not_drained() -> None:
    stats = EngineStats(running=2, waiting=1, resident={"device": ("b", "a"), "host": ("a",)}, training_jobs=("j",))
    client, _ = await started(lambda c: [Output(command_id(c), stats, done=True)])
    client.report(EngineState(EnginePhase.READY))
    (found,) = await client.replicas()
    assert (found.id, found.state, found.running, found.waiting) == ("engine", ReplicaState.READY, 2, 1)
    assert (found.resident, found.training_jobs) == (("a", "b"), ("j",))
    for id, reason in (("engine", "ONLY_REPLICA"), ("other", "REPLICA_NOT_FOUND")):
        with pytest.raises(Error) as refused:
            await client.drain(id)
        assert refused.value.reason == reason


async def test_an_engine_that_is_away_is_listed_as_restarting() -> None:
    def away(command: Command) -> Iterable[Output]:
        raise Error(Code.UNAVAILABLE, "the engine is starting again")

    client, _ = await started(away)
    client.report(EngineState(EnginePhase.RESTARTING))
    (found,) = await client.replicas()
    assert (found.state, found.running) == (ReplicaState.RESTARTING, 0)
