"""Requests through the service with a scripted engine: text, choices, usage, ends, and whom a fault touches."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import threading
import time
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import pytest

from loramux_server.core.backend import EngineInfo, GenerateCommand, SequenceTimes
from loramux_server.core.call import Call, enter
from loramux_server.core.callers.principal import LOCAL
from loramux_server.core.errors import Code, Error
from loramux_server.core.types import (
    Chunk,
    FinishReason,
    Grammar,
    GrammarKind,
    Message,
    SamplingParams,
    StackItem,
    Usage,
)
from loramux_server.services.common.context import Context
from loramux_server.services.common.limits import Limits
from loramux_server.services.common.workers import PREPARED_AT_ONCE
from loramux_server.services.inference.service import GenerationService
from loramux_server.services.inference.types import GenerateRequest, ScoreRequest, TokenizeRequest
from loramux_server.store.records import AdapterMeta
from loramux_server.store.store import Store
from loramux_server.text import TextTokenizer

from .adapter_files import write_adapter
from .fakes import FakeBackend, Script, caller
from .recording import Recorder


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def service(context: Context, recorder: Recorder) -> GenerationService:
    return GenerationService(context, recorder)


@pytest.fixture
def adapters(store: Store, info: EngineInfo, tmp_path: Path) -> None:
    """``acme`` with two versions, the second current, and ``formal``."""
    for i, name in enumerate(("acme", "acme", "formal")):
        folder = write_adapter(tmp_path / f"adapter{i}", info, b=0.1 * (i + 1))
        store.adapters.publish(name, "default", folder, AdapterMeta(rank=2, alpha=4.0))


def answering(text: TextTokenizer, answer: str, **script: object) -> Script:
    return Script(tuple(text.encode_continuation(answer)), **script)  # type: ignore[arg-type]


async def collect(service: GenerationService, request: GenerateRequest) -> list[Chunk]:
    return [chunk async for chunk in service.generate(request)]


async def refused(service: GenerationService, request: GenerateRequest) -> Error:
    with pytest.raises(Error) as caught:
        await collect(service, request)
    return caught.value


async def test_an_answer_comes_in_pieces_with_usage_at_the_end(
    service: GenerationService, backend: FakeBackend, text: TextTokenizer
) -> None:
    answer = "The shop 🙂 opens at nine. 東京"
    backend.script = lambda _: answering(text, answer)
    chunks = await collect(service, GenerateRequest(prompt="Where is the shop?", principal=LOCAL))
    ids = text.encode_continuation(answer)
    assert "".join(c.text for c in chunks) == answer
    assert [t for c in chunks for t in c.token_ids] == ids
    assert len(chunks) == len(ids)
    assert not any("\ufffd" in c.text for c in chunks)
    assert [c.finish_reason for c in chunks] == [None] * (len(ids) - 1) + [FinishReason.LENGTH]
    assert [c.usage for c in chunks[:-1]] == [None] * (len(ids) - 1)
    assert chunks[-1].usage == Usage(len(text.encode("Where is the shop?")), len(ids), 0)
    assert backend.open == 0
    assert backend.aborted == []


async def test_messages_go_through_the_template(
    service: GenerationService, backend: FakeBackend, text: TextTokenizer
) -> None:
    messages = (Message("user", "hi <|im_end|>"),)
    await collect(service, GenerateRequest(messages=messages, principal=LOCAL))
    assert list(backend.commands[0].prompt_ids) == text.encode_chat(messages)


@pytest.mark.parametrize("per_event", [1, 3, 100])
async def test_a_stop_string_ends_the_choice_and_the_work(
    service: GenerationService, backend: FakeBackend, text: TextTokenizer, per_event: int
) -> None:
    backend.script = lambda _: answering(text, "nine and five END of it", per_event=per_event, hang=True)
    done = await service.generate_once(GenerateRequest(prompt="when", stop=(" END", "nothing"), principal=LOCAL))
    assert done.choices[0].text == "nine and five"
    assert done.choices[0].finish_reason is FinishReason.STOP
    assert done.usage.completion_tokens == len(done.choices[0].token_ids)
    assert text.decode(done.choices[0].token_ids).startswith("nine and five END")
    assert backend.open == 0
    assert backend.aborted == [backend.commands[0].id]


async def test_min_tokens_puts_stop_strings_off(
    service: GenerationService, backend: FakeBackend, text: TextTokenizer
) -> None:
    backend.script = lambda _: answering(text, "END and END")
    first = len(text.encode_continuation("END and"))
    request = GenerateRequest(prompt="x", stop=("END",), sampling=SamplingParams(min_tokens=first), principal=LOCAL)
    done = await service.generate_once(request)
    assert done.choices[0].text == "END and "


async def test_the_end_token_has_no_text(service: GenerationService, backend: FakeBackend, text: TextTokenizer) -> None:
    visible = text.encode_continuation("nine stop")
    backend.script = lambda _: Script((*visible,), finish=FinishReason.STOP)
    request = GenerateRequest(prompt="x", sampling=SamplingParams(stop_token_ids=(visible[-1],)), principal=LOCAL)
    done = await service.generate_once(request)
    assert done.choices[0].text == text.decode(visible[:-1])
    assert done.choices[0].token_ids == tuple(visible)


async def test_choices_have_consecutive_seeds_and_stay_apart(
    service: GenerationService, backend: FakeBackend, text: TextTokenizer
) -> None:
    answers = {7: "nine", 8: "the harbour street", 9: ""}
    backend.script = lambda command: answering(text, answers[command.sampling.seed or 0])
    request = GenerateRequest(prompt="x", n=3, sampling=SamplingParams(temperature=1.0, seed=7), principal=LOCAL)
    done = await service.generate_once(request)
    assert [c.text for c in done.choices] == ["nine", "the harbour street", ""]
    assert [c.index for c in done.choices] == [0, 1, 2]
    assert done.usage.completion_tokens == sum(len(c.token_ids) for c in done.choices)
    assert len({c.id for c in backend.commands}) == 3
    wrapped = dataclasses.replace(request, n=2, sampling=SamplingParams(temperature=1.0, seed=2**63 - 1))
    backend.script = lambda command: Script()
    await service.generate_once(wrapped)
    assert [c.sampling.seed for c in backend.commands[-2:]] == [2**63 - 1, -(2**63)]


async def test_a_fresh_seed_only_where_something_is_random(service: GenerationService, backend: FakeBackend) -> None:
    for temperature in (0.0, 1e-9, 1.0, 1.0):
        await collect(
            service, GenerateRequest(prompt="x", sampling=SamplingParams(temperature=temperature), principal=LOCAL)
        )
    seeds = [c.sampling.seed for c in backend.commands]
    assert seeds[:2] == [None, None]
    assert backend.commands[1].sampling.temperature == 0.0
    assert None not in seeds[2:]
    assert seeds[2] != seeds[3]


async def test_max_tokens_is_cut_to_the_context(
    service: GenerationService, backend: FakeBackend, info: EngineInfo
) -> None:
    await collect(
        service,
        GenerateRequest(prompt="x y", sampling=SamplingParams(max_tokens=10_000, min_tokens=9_000), principal=LOCAL),
    )
    command = backend.commands[0]
    assert command.sampling.max_tokens == info.max_context - len(command.prompt_ids)
    assert command.sampling.min_tokens == command.sampling.max_tokens


async def test_a_prompt_beyond_the_context_is_refused(service: GenerationService, backend: FakeBackend) -> None:
    error = await refused(service, GenerateRequest(prompt="1 " * 400, principal=LOCAL))
    assert error.code is Code.INVALID_ARGUMENT
    assert [v.field for v in error.violations] == ["prompt"]
    assert "256" in error.message
    assert backend.commands == []


async def test_bad_fields_never_reach_the_engine(service: GenerationService, backend: FakeBackend) -> None:
    error = await refused(service, GenerateRequest(prompt="", n=0, principal=LOCAL))
    assert [v.field for v in error.violations] == ["prompt", "n"]
    error = await refused(
        service, GenerateRequest(prompt="x", response_format={"type": "regex", "regex": ""}, principal=LOCAL)
    )
    assert [v.field for v in error.violations] == ["response_format.regex"]
    assert backend.commands == []


async def test_a_shape_reaches_the_engine_as_a_grammar(
    service: GenerationService, backend: FakeBackend, text: TextTokenizer
) -> None:
    ids = text.encode_continuation("nine")
    backend.script = lambda _: Script((*ids,), finish=FinishReason.STOP)
    shape = {"type": "choice", "choice": ["nine", "five"]}
    done = await service.generate_once(GenerateRequest(prompt="x", n=2, response_format=shape, principal=LOCAL))
    assert [c.text for c in done.choices] == ["nine", "nine"]
    assert [c.grammar for c in backend.commands] == [Grammar(GrammarKind.LARK, 'start: "nine" | "five"')] * 2


@pytest.mark.usefixtures("adapters")
async def test_a_stack_is_resolved_to_versions(service: GenerationService, backend: FakeBackend, store: Store) -> None:
    stack = (StackItem("acme", 0.5), StackItem("formal@1", 0.0))
    chunks = await collect(service, GenerateRequest(prompt="x", adapters=stack, principal=LOCAL))
    for chunk in (chunks[0], chunks[-1]):
        assert [(e.adapter.ref, e.weight) for e in chunk.adapters] == [("acme@2", 0.5), ("formal@1", 0.0)]
    sent = backend.commands[0].stack
    assert [(e.adapter.ref, e.weight) for e in sent.entries] == [("acme@2", 0.5)]
    assert store.blobs.holds(sent.entries[0].adapter.digest)
    assert store.adapters.get_version("acme", "default").last_used is not None


@pytest.mark.usefixtures("adapters")
@pytest.mark.parametrize("ref", ["nobody", "acme@3", "acme@beta"])
async def test_an_unknown_adapter_is_named_and_never_the_base(
    service: GenerationService, backend: FakeBackend, ref: str
) -> None:
    error = await refused(
        service, GenerateRequest(prompt="x", adapters=(StackItem("formal"), StackItem(ref)), principal=LOCAL)
    )
    assert error.code is Code.NOT_FOUND
    assert ref in error.message
    assert backend.commands == []


@pytest.mark.usefixtures("adapters")
async def test_another_tenants_adapter_reads_as_absent(service: GenerationService) -> None:
    request = GenerateRequest(prompt="x", adapters=(StackItem("acme"),), principal=caller("other"))
    absent = dataclasses.replace(request, adapters=(StackItem("absent"),))
    error, other = await refused(service, request), await refused(service, absent)
    assert error.code is other.code is Code.NOT_FOUND
    assert error.message == other.message.replace("absent", "acme")


async def test_leaving_stops_the_engine(service: GenerationService, backend: FakeBackend, recorder: Recorder) -> None:
    backend.script = lambda _: Script((5, 6), hang=True)
    async with aclosing(service.generate(GenerateRequest(prompt="x", n=2, principal=LOCAL))) as chunks:
        await anext(chunks)
        assert backend.open == 2
    assert backend.open == 0
    assert len(backend.aborted) == 2
    assert [f.code for f in recorder.finished] == ["CANCELLED"]


async def test_a_cancelled_caller_stops_the_engine(service: GenerationService, backend: FakeBackend) -> None:
    backend.script = lambda _: Script((5,), hang=True)
    task = asyncio.create_task(service.generate_once(GenerateRequest(prompt="x", principal=LOCAL)))
    await backend.hanging.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert backend.open == 0


async def test_a_deadline_ends_an_engine_that_hangs(
    service: GenerationService, backend: FakeBackend, recorder: Recorder
) -> None:
    backend.script = lambda _: Script((5,), hang=True)
    deadline = time.monotonic() + 0.1
    error = await refused(service, GenerateRequest(prompt="x", deadline=deadline, principal=LOCAL))
    assert error.code is Code.DEADLINE_EXCEEDED
    left = backend.commands[0].seconds_left
    assert left is not None
    assert left <= 0.1
    assert backend.open == 0
    assert recorder.finished[0].code == "DEADLINE_EXCEEDED"


@pytest.mark.parametrize("late", [True, False])
async def test_a_door_that_ends_a_call_at_its_deadline_is_no_caller_that_left(
    service: GenerationService, backend: FakeBackend, recorder: Recorder, late: bool
) -> None:
    backend.script = lambda _: Script((5,), hang=True)
    deadline = time.monotonic() + (0.2 if late else 60)
    asked = GenerateRequest(prompt="x", deadline=deadline, principal=LOCAL)
    task = asyncio.create_task(service.generate_once(asked))
    await backend.hanging.wait()
    while late and time.monotonic() < deadline:
        pass  # without the loop, whose timer would end it first
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [f.code for f in recorder.finished] == ["DEADLINE_EXCEEDED" if late else "CANCELLED"]


async def test_without_a_deadline_the_servers_own_holds(context: Context, backend: FakeBackend) -> None:
    service = GenerationService(dataclasses.replace(context, limits=Limits(max_request_seconds=0.05)))
    backend.script = lambda _: Script((5,), hang=True)
    assert (await refused(service, GenerateRequest(prompt="x", principal=LOCAL))).code is Code.DEADLINE_EXCEEDED


@pytest.mark.parametrize("method", ["generate", "score", "tokenize"])
async def test_field_01_preparation_takes_turns_within_the_deadline(
    method: str, context: Context, text: TextTokenizer
) -> None:
    lock, go, open_, most = threading.Lock(), threading.Event(), 0, 0
    encode = text.encode

    def slow(prompt: str, **options: str) -> list[int]:
        nonlocal open_, most
        with lock:
            open_ += 1
            most = max(most, open_)
        go.wait(10)
        with lock:
            open_ -= 1
        return encode(prompt, **options)

    text = copy.copy(text)
    text.encode = slow  # type: ignore[method-assign]
    service = GenerationService(dataclasses.replace(context, text=text, limits=Limits(max_request_seconds=0.2)))

    async def one() -> Code | None:
        try:
            if method == "generate":
                await service.generate_once(GenerateRequest(prompt="x", principal=LOCAL))
            elif method == "score":
                await service.score(ScoreRequest(continuation="y", prompt="x", principal=LOCAL))
            else:
                await service.tokenize(TokenizeRequest(prompt="x"))
        except Error as error:
            return error.code
        return None

    try:
        codes = await asyncio.gather(*(one() for _ in range(PREPARED_AT_ONCE + 4)))
    finally:
        go.set()
    assert set(codes) == {Code.DEADLINE_EXCEEDED}
    assert most == PREPARED_AT_ONCE


async def test_a_passed_deadline_asks_nothing_of_the_engine(service: GenerationService, backend: FakeBackend) -> None:
    error = await refused(service, GenerateRequest(prompt="x", deadline=time.monotonic() - 1, principal=LOCAL))
    assert error.code is Code.DEADLINE_EXCEEDED
    assert backend.commands == []


async def test_a_failed_sequence_is_the_requests_error(
    service: GenerationService, backend: FakeBackend, recorder: Recorder
) -> None:
    backend.script = lambda _: Script((5, 6), error=Error(Code.INTERNAL, "the logits are not numbers"))
    error = await refused(service, GenerateRequest(prompt="x", n=2, principal=LOCAL))
    assert (error.code, error.message) == (Code.INTERNAL, "the logits are not numbers")
    assert recorder.finished[0].finish_reasons == (FinishReason.ERROR, FinishReason.ERROR)


async def test_one_failed_choice_leaves_the_others(
    service: GenerationService, backend: FakeBackend, text: TextTokenizer
) -> None:
    def script(command: GenerateCommand) -> Script:
        if command.id.endswith("-1"):
            return Script((5,), error=Error(Code.INTERNAL, "the logits are not numbers"))
        return answering(text, "nine and five")

    backend.script = script
    done = await service.generate_once(GenerateRequest(prompt="x", n=3, principal=LOCAL))
    assert [c.finish_reason for c in done.choices] == [FinishReason.LENGTH, FinishReason.ERROR, FinishReason.LENGTH]
    assert [done.choices[i].text for i in (0, 2)] == ["nine and five"] * 2


async def test_a_dead_engine_fails_the_request_and_only_it(
    service: GenerationService, backend: FakeBackend, text: TextTokenizer
) -> None:
    def script(command: GenerateCommand) -> Script:
        if command.prompt_ids == tuple(text.encode("dead")):
            return Script((5,), raises=Error(Code.UNAVAILABLE, "the engine died"))
        return answering(text, "nine", per_event=1)

    backend.script = script
    alive = asyncio.create_task(service.generate_once(GenerateRequest(prompt="alive", principal=LOCAL)))
    error = await refused(service, GenerateRequest(prompt="dead", n=4, principal=LOCAL))
    assert error.code is Code.UNAVAILABLE
    assert (await alive).choices[0].text == "nine"
    assert backend.open == 0


async def test_a_failure_of_the_grammar_is_told_with_its_reason(
    service: GenerationService, backend: FakeBackend, recorder: Recorder
) -> None:
    """What the usage of the tokens before it depends on."""
    failure = Error(Code.RESOURCE_EXHAUSTED, "too complex", reason="GRAMMAR_RESOURCE_EXHAUSTED")
    backend.script = lambda _: Script((5, 6), raises=failure)
    await refused(service, GenerateRequest(prompt="x", principal=LOCAL))
    (finished,) = recorder.finished
    assert (finished.code, finished.reason) == (failure.code.name, failure.reason)
    assert finished.completion_tokens == 2


async def test_an_engine_that_stops_without_a_word_is_unavailable(
    service: GenerationService, backend: FakeBackend
) -> None:
    async def nothing(command: GenerateCommand):  # type: ignore[no-untyped-def]
        return
        yield

    backend.generate = nothing  # type: ignore[method-assign,assignment]
    assert (await refused(service, GenerateRequest(prompt="x", principal=LOCAL))).code is Code.UNAVAILABLE


async def test_the_observer_hears_of_every_token_once(
    service: GenerationService, backend: FakeBackend, recorder: Recorder
) -> None:
    backend.script = lambda _: Script((5, 6, 7), per_event=2)
    await collect(service, GenerateRequest(prompt="x", request_id="mine", principal=caller("t")))
    (started,), (finished,) = recorder.started, recorder.finished
    assert (started.request_id, started.method, started.tenant) == ("mine", "generate", "t")
    assert finished.code == "OK"
    assert finished.completion_tokens == 3
    ((tenant, waited),) = recorder.first
    assert tenant == "t"
    assert 0 <= waited <= finished.duration
    assert [count for count, _ in recorder.counts] == [2, 1]
    assert recorder.counts[0][1] is None
    assert recorder.counts[1][1] is not None


TIMES = SequenceTimes(waiting=0.5, loading=0.25, prefill=2.0, decode=3.0, preempted=1)


async def test_a_request_tells_where_its_time_went(
    service: GenerationService, backend: FakeBackend, recorder: Recorder, text: TextTokenizer
) -> None:
    """The call that asks, the time before the engine, and the engine's times of the choice that ended last."""

    def script(command: GenerateCommand) -> Script:
        last = command.id.endswith("-1")
        return Script((5, 6, 7) if last else (5,), times=TIMES if last else replace(TIMES, decode=1.0))

    backend.script = script
    call = Call(method="Generate", request_id="mine", principal=LOCAL)
    enter(call)
    await collect(service, GenerateRequest(prompt="x", n=2, principal=LOCAL))
    (started,), (finished,) = recorder.started, recorder.finished
    assert started.call is finished.call is call
    assert finished.times == TIMES
    assert finished.time_to_first_token == recorder.first[0][1]
    assert 0 < finished.preparation <= finished.time_to_first_token <= finished.duration


async def test_the_times_of_an_answer_that_a_stop_string_ends_are_of_what_was_sent(
    service: GenerationService, backend: FakeBackend, recorder: Recorder, text: TextTokenizer
) -> None:
    backend.script = lambda _: answering(text, "nine and five END of it", hang=True, times=TIMES)
    await collect(service, GenerateRequest(prompt="when", stop=(" END",), principal=LOCAL))
    (finished,) = recorder.finished
    assert finished.times is not None
    assert replace(finished.times, decode=3.0) == TIMES
    assert finished.time_to_first_token is not None
    assert 0 < finished.times.decode <= finished.duration - finished.time_to_first_token


async def test_a_request_that_ends_before_its_first_token_has_no_times(
    service: GenerationService, backend: FakeBackend, recorder: Recorder
) -> None:
    backend.script = lambda _: Script(raises=Error(Code.UNAVAILABLE, "gone"))
    assert (await refused(service, GenerateRequest(prompt="x", principal=LOCAL))).code is Code.UNAVAILABLE
    (finished,) = recorder.finished
    assert (finished.code, finished.times, finished.time_to_first_token) == ("UNAVAILABLE", None, None)
    assert 0 < finished.preparation <= finished.duration


async def test_score_counts_the_continuation_only(
    service: GenerationService, backend: FakeBackend, text: TextTokenizer, recorder: Recorder
) -> None:
    score = await service.score(ScoreRequest(continuation=" at nine", prompt="The office opens", principal=LOCAL))
    ids = text.encode_continuation(" at nine")
    assert list(score.token_ids) == ids
    assert score.logprobs == tuple(-float(i) for i in range(len(ids)))
    assert "".join(score.tokens) == " at nine"
    assert score.prompt_tokens == len(text.encode("The office opens"))
    assert backend.scores[0].prompt_ids == tuple(text.encode("The office opens"))
    assert (recorder.finished[0].method, recorder.finished[0].cached_tokens) == ("score", score.prompt_tokens - 1)


async def test_score_refuses_what_does_not_fit(service: GenerationService) -> None:
    with pytest.raises(Error) as caught:
        await service.score(ScoreRequest(continuation="", prompt="", principal=LOCAL))
    assert [v.field for v in caught.value.violations] == ["prompt", "continuation"]
    with pytest.raises(Error) as caught:
        await service.score(ScoreRequest(continuation="1 " * 300, prompt="x", principal=LOCAL))
    assert [v.field for v in caught.value.violations] == ["continuation"]


async def test_tokenize_shows_what_generate_feeds(
    service: GenerationService, backend: FakeBackend, text: TextTokenizer
) -> None:
    messages = (Message("user", "naïve 🙂"),)
    tokens = await service.tokenize(TokenizeRequest(messages=messages))
    await collect(service, GenerateRequest(messages=messages, principal=LOCAL))
    assert tokens.ids == backend.commands[0].prompt_ids
    assert tokens.text == "<|im_start|>user\nnaïve 🙂<|im_end|>\n<|im_start|>assistant\n"
    assert len(tokens.pieces) == len(tokens.ids)
    with pytest.raises(Error):
        await service.tokenize(TokenizeRequest())


async def test_field_36_score_and_tokenize_tell_bytes(service: GenerationService, text: TextTokenizer) -> None:
    score = await service.score(ScoreRequest(continuation=" 東京 🙂", prompt="x", principal=LOCAL))
    assert b"".join(score.token_bytes).decode() == " 東京 🙂"
    assert len(score.token_bytes) == len(score.token_ids) == len(score.tokens)
    tokens = await service.tokenize(TokenizeRequest(prompt="naïve 🙂"))
    assert b"".join(tokens.token_bytes).decode() == "naïve 🙂"


async def test_field_37_the_last_message_is_continued_or_the_request_refused(
    service: GenerationService, backend: FakeBackend, text: TextTokenizer
) -> None:
    messages = (Message("user", "q"), Message("assistant", "The shop is"))
    request = GenerateRequest(messages=messages, principal=LOCAL)
    for error in (
        await refused(service, request),
        await refused(service, dataclasses.replace(request, messages=(), prompt="x", continue_final_message=True)),
    ):
        assert error.code is Code.INVALID_ARGUMENT
        assert [v.field for v in error.violations] == ["continue_final_message"]
    with pytest.raises(Error) as caught:
        await service.score(ScoreRequest(continuation=" open", messages=messages, principal=LOCAL))
    assert [v.field for v in caught.value.violations] == ["continue_final_message"]
    assert backend.commands == backend.scores == []

    asked = "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n"
    await collect(service, dataclasses.replace(request, continue_final_message=True))
    await service.score(
        ScoreRequest(continuation=" open", messages=messages, continue_final_message=True, principal=LOCAL)
    )
    tokens = await service.tokenize(TokenizeRequest(messages=messages, continue_final_message=True))
    assert tokens.text == asked + "The shop is"
    assert tokens.ids == backend.commands[0].prompt_ids == backend.scores[0].prompt_ids
    assert text.decode(tokens.ids, skip_special_tokens=False) == tokens.text
    # To count the tokens of a conversation needs no such word.
    assert (await service.tokenize(TokenizeRequest(messages=messages))).text.endswith(
        "The shop is<|im_end|>\n<|im_start|>assistant\n"
    )


async def test_field_06_a_shape_is_not_cut(
    service: GenerationService, backend: FakeBackend, text: TextTokenizer, info: EngineInfo
) -> None:
    """Neither by a stop text nor by a stop token; the model's end token has no text even where it is ignored."""
    ids = text.encode_continuation("nine stop five")
    backend.script = lambda _: Script((*ids, info.eos_token_ids[0]), finish=FinishReason.STOP)
    done = await service.generate_once(
        GenerateRequest(
            prompt="x",
            stop=("stop", "e"),
            sampling=SamplingParams(stop_token_ids=(ids[-1],), ignore_eos=True),
            response_format={"type": "choice", "choice": ["nine stop five"]},
            principal=LOCAL,
        )
    )
    assert (done.choices[0].text, done.choices[0].finish_reason) == ("nine stop five", FinishReason.STOP)
