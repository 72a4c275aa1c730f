"""Conversion: what is unset takes its default, what is set arrives, enums match one to one."""

from __future__ import annotations

import struct
from dataclasses import fields, replace

import pytest
from google.protobuf.message import Message as ProtoMessage

from loramux.v1 import adapters_pb2, common_pb2, inference_pb2, server_pb2, training_pb2
from loramux_server.api.convert import adapters, common, inference, training
from loramux_server.core.call import Call
from loramux_server.core.callers.principal import LOCAL
from loramux_server.core.compose import ComposeMethod
from loramux_server.core.errors import Error
from loramux_server.core.jobs import (
    Gate,
    JobRequest,
    JobState,
    JudgedAnswer,
    JudgedRow,
    TrainEvent,
    TrainEventType,
    TrainSpec,
)
from loramux_server.core.notes import Note
from loramux_server.core.types import (
    AdapterVersion,
    Chunk,
    FinishReason,
    Message,
    Pooling,
    SamplingParams,
    StackEntry,
    StackItem,
    TokenLogprob,
    Usage,
)
from loramux_server.data.label_masks import MarkedText
from loramux_server.services.adapters.types import AdapterInfo, ComposeRequest
from loramux_server.services.availability import Readiness
from loramux_server.services.inference.types import (
    Choice,
    Completion,
    Embeddings,
    EmbedRequest,
    GenerateRequest,
    Score,
)
from loramux_server.services.jobs.checking.types import DatasetReport, MarkedRow, RowProblem
from loramux_server.store.records import (
    AdapterMeta,
    Composition,
    DatasetRecord,
    EventRecord,
    JobRecord,
    VersionRecord,
    VersionState,
)
from loramux_server.text.answers.forced_calls import ToolChoice, ToolMode
from tests.unit.services.fakes import caller

CALL = Call("Generate", "r1", LOCAL, 12.5)
STACK = (StackItem("acme", 1.0), StackItem("formal@2", -0.5))
VERSION = VersionRecord(
    name="acme",
    owner="default",
    version=3,
    digest="d1",
    state=VersionState.QUARANTINED,
    size_bytes=1 << 33,
    meta=AdapterMeta(
        rank=8,
        alpha=16.0,
        base_fingerprint="f00d",
        target_modules=("q_proj", "v_proj"),
        layers=(0, 1),
        job_id="j",
        gate_result="too few",
        dataset_digest="dd",
        parent="acme@2",
        asked_with="prompt",
        trained_on=(STACK, ()),
        composed=Composition("dare_ties", STACK, 0.25, density=0.5, seed=7),
        metrics={"loss": 0.5},
        metadata={"who": "me"},
    ),
    created=1.5,
    pinned=True,
    shared=True,
    last_used=2.5,
    reason="why",
    rslora=True,
    base_name="tiny",
    for_other_base=True,
    warnings=("odd",),
    tier="host",
)
DATASET = DatasetRecord("ds-1", "default", "d2", "acme.jsonl", "jsonl", 1 << 32, 3.5, 7)
EVENT = EventRecord(
    "j",
    4,
    9.5,
    TrainEvent(
        TrainEventType.STATE,
        "hi",
        JobState.RUNNING,
        3,
        9,
        {"loss": 1.25, "learning_rate": 2e-4},
        (JudgedRow("Where?", ("Here.",), {"base": JudgedAnswer("There.", True)}),),
    ),
)
JOB = JobRecord(
    "j",
    JobRequest(
        "style",
        "ds-1",
        "default",
        validation_dataset_id="ds-2",
        on_top_of=(STACK, ()),
        init_from="style@1",
        gate=Gate("min_accuracy", 0.5, "exact"),
        compare_prompt="Be brief.",
        compare_documents="ds-2",
        metadata={"a": "b"},
        idempotency_key="k",
    ),
    JobState.FAILED,
    1.0,
    2.0,
    started=3.0,
    finished=4.0,
    step=5,
    total_steps=6,
    metrics={"loss": 0.5},
    adapter="acme@3",
    error_code="NAN",
    error="loss is NaN",
    gate_result="too few",
    notes=(Note("FEW_ROWS", "few", 3, 1),),
    last_sequence=7,
    published=VERSION,
    answers=EVENT.event.answers,
    replaced="acme@2",
)


def unset(message: ProtoMessage) -> set[str]:
    """Names of the fields of a message that are not set."""
    return set(message.DESCRIPTOR.fields_by_name) - {field.name for field, _ in message.ListFields()}


def token_text(token_id: int) -> str:
    return f"<{token_id}>"


def test_an_empty_request_takes_every_default() -> None:
    found = inference.generate_from_proto(inference_pb2.GenerateRequest(), CALL, SamplingParams(max_tokens=77))
    assert found == GenerateRequest(
        sampling=SamplingParams(max_tokens=77), principal=LOCAL, request_id="r1", deadline=12.5
    )


def test_what_is_set_arrives_also_when_it_is_zero() -> None:
    request = inference_pb2.GenerateRequest(
        prompt="",
        adapters=[common_pb2.StackEntry(adapter="acme"), common_pb2.StackEntry(adapter="formal@2", weight=0.0)],
        max_tokens=0,
        temperature=0.0,
        top_p=0.0,
        top_k=5,
        min_p=0.25,
        repetition_penalty=0.0,
        presence_penalty=1.5,
        frequency_penalty=-1.5,
        logit_bias={9: 1.0, 3: -100.0},
        seed=0,
        logprobs=0,
        stop=["\n", "x"],
        stop_token_ids=[5, 6],
        ignore_eos=True,
        min_tokens=2,
        n=0,
    )
    found = inference.generate_from_proto(request, CALL, SamplingParams(max_tokens=77))
    assert found.prompt == ""
    assert found.adapters == (StackItem("acme", 1.0), StackItem("formal@2", 0.0))
    assert found.stop == ("\n", "x")
    assert found.n == 0
    assert found.sampling == SamplingParams(
        max_tokens=0,
        temperature=0.0,
        top_p=0.0,
        top_k=5,
        min_p=0.25,
        repetition_penalty=0.0,
        presence_penalty=1.5,
        frequency_penalty=-1.5,
        logit_bias=((3, -100.0), (9, 1.0)),
        seed=0,
        logprobs=0,
        stop_token_ids=(5, 6),
        ignore_eos=True,
        min_tokens=2,
    )


def test_every_sampling_parameter_is_carried() -> None:
    """A field added to SamplingParams must be added to the API or the conversion, or this fails."""
    carried = {f.name for f in inference_pb2.GenerateRequest.DESCRIPTOR.fields}
    assert {f.name for f in fields(SamplingParams)} <= carried


def test_messages_keep_their_weights() -> None:
    messages = [common_pb2.Message(role="user", content="a"), common_pb2.Message(role="assistant", weight=0.0)]
    assert common.messages_from_proto(messages) == (Message("user", "a", 1.0), Message("assistant", "", 0.0))


def test_messages_carry_calls_and_parts() -> None:
    parts = [common_pb2.ContentPart(text="a"), common_pb2.ContentPart(type="image_url", text="b")]
    (message,) = common.messages_from_proto(
        [common_pb2.Message(role="tool", content_parts=parts, tool_calls="[]", tool_call_id="1", name="f")]
    )
    said = ({"type": "text", "text": "a"}, {"type": "image_url", "text": "b"})
    assert message == Message("tool", said, 1.0, "[]", "1", "f")
    with pytest.raises(Error) as caught:
        common.messages_from_proto([common_pb2.Message(role="user", content="a", content_parts=parts)])
    assert caught.value.violations[0].field == "messages[0].content"


def test_which_tools_are_called() -> None:
    def made(**choice: object) -> ToolChoice:
        request = inference_pb2.GenerateRequest(tool_choice=inference_pb2.ToolChoice(**choice))  # type: ignore[arg-type]
        return inference.generate_from_proto(request, CALL, SamplingParams()).tool_choice

    assert made() == ToolChoice(ToolMode.AUTO)
    assert made(mode=inference_pb2.TOOL_MODE_NONE) == ToolChoice(ToolMode.NONE)
    required = made(mode=inference_pb2.TOOL_MODE_REQUIRED, name="f", single=True)
    assert required == ToolChoice(ToolMode.REQUIRED, "f", single=True)
    with pytest.raises(Error, match=r"tool_choice\.mode: is 9"):
        made(mode=9)


def test_response_formats() -> None:
    make = inference_pb2.ResponseFormat
    assert inference.format_from_proto(make(json_schema="{}")) == {"type": "json_schema", "json_schema": "{}"}
    choice = make(choice=inference_pb2.ChoiceList(choices=["a", "b"]))
    assert inference.format_from_proto(choice) == {"type": "choice", "choice": ["a", "b"]}
    assert inference.format_from_proto(make(json_object=inference_pb2.JsonObjectFormat())) == {"type": "json_object"}
    with pytest.raises(Error, match="response_format"):
        inference.format_from_proto(make())


def test_chunks() -> None:
    entry = StackEntry(AdapterVersion("acme", 3, "d1", 8), 0.5)
    chunk = Chunk(
        index=1,
        text="hé",
        token_ids=(4, 5),
        logprobs=(TokenLogprob(4, -0.5, ((4, -0.5), (7, -2.0)), (b"a", b"a", b"c")), TokenLogprob(5, -0.25)),
        finish_reason=FinishReason.LENGTH,
        usage=Usage(3, 2, 1),
        adapters=(entry,),
    )
    message = inference.chunk_to_proto(chunk, token_text)
    assert (message.index, message.text, list(message.token_ids)) == (1, "hé", [4, 5])
    assert [(t.token_id, t.logprob, t.token) for t in message.logprobs[0].top] == [(4, -0.5, "<4>"), (7, -2.0, "<7>")]
    assert [(e.token_bytes, [t.token_bytes for t in e.top]) for e in message.logprobs] == [
        (b"a", [b"a", b"c"]),
        (b"", []),
    ]
    assert message.finish_reason == inference_pb2.FINISH_REASON_LENGTH
    assert (message.usage.prompt_tokens, message.usage.cached_tokens, message.usage.total_tokens) == (3, 1, 5)
    assert [(a.name, a.version, a.digest, a.weight) for a in message.adapters] == [("acme", 3, "d1", 0.5)]
    middle = inference.chunk_to_proto(Chunk(text="x"), token_text)
    assert not middle.HasField("usage")
    assert middle.finish_reason == inference_pb2.FINISH_REASON_UNSPECIFIED


def test_completion_and_score() -> None:
    completion = Completion("r1", (Choice(0, "hi", (1,), (), FinishReason.STOP),), Usage(2, 1), ())
    result = inference.completion_to_proto(completion, token_text)
    assert (result.request_id, result.choices[0].text, result.usage.total_tokens) == ("r1", "hi", 3)
    score = inference.score_to_proto(Score((1, 2), ("a", "b"), (-1.0, -2.0), (True, False), 4, ()))
    assert (list(score.greedy), list(score.tokens)) == ([True, False], ["a", "b"])
    assert (score.usage.prompt_tokens, score.usage.completion_tokens, score.usage.total_tokens) == (4, 2, 6)


def test_embeddings() -> None:
    ids = inference_pb2.EmbedInput(token_ids=inference_pb2.TokenIds(ids=[5, 6]))
    entry = common_pb2.StackEntry(adapter="acme")
    request = inference_pb2.EmbedRequest(input=[inference_pb2.EmbedInput(text="a"), ids], adapters=[entry])
    found = inference.embed_from_proto(request, CALL)
    assert found == EmbedRequest(
        input=("a", (5, 6)), adapters=STACK[:1], principal=LOCAL, request_id="r1", deadline=12.5
    )
    request.pooling, request.normalize, request.dimensions = inference_pb2.POOLING_LAST, False, 4
    assert inference.embed_from_proto(request, CALL) == replace(
        found, pooling=Pooling.LAST, normalize=False, dimensions=4
    )
    request.input.add()
    with pytest.raises(Error, match=r"input\[2\]: has no content"):
        inference.embed_from_proto(request, CALL)
    with pytest.raises(Error, match="pooling: is 9"):
        inference.embed_from_proto(inference_pb2.EmbedRequest(pooling=9), CALL)  # type: ignore[arg-type]
    vectors = (struct.pack("<2f", 0.5, 2.0**-126), struct.pack("<2f", -1.0, 3.0))
    message = inference.embeddings_to_proto(Embeddings(vectors, 2, 7, (StackEntry(AdapterVersion("a", 1, "d", 2)),)))
    assert [list(each.values) for each in message.embeddings] == [[0.5, 2.0**-126], [-1.0, 3.0]]
    assert (message.usage.prompt_tokens, message.usage.completion_tokens) == (7, 0)
    assert [(a.name, a.version, a.weight) for a in message.adapters] == [("a", 1, 1.0)]


def test_adapter_versions_carry_every_field() -> None:
    message = adapters.version_to_proto(VERSION)
    assert unset(message) == set()
    assert (message.state, message.tier) == (adapters_pb2.ADAPTER_STATE_QUARANTINED, adapters_pb2.ADAPTER_TIER_HOST)
    assert (message.state_reason, message.created_at, message.last_used_at) == ("why", 1.5, 2.5)
    assert (message.size_bytes, list(message.layers), dict(message.metrics)) == (1 << 33, [0, 1], {"loss": 0.5})
    assert tuple(common.stack_from_proto(stack.entries) for stack in message.trained_on) == (STACK, ())
    composed = message.composed
    assert (composed.error, composed.density, composed.seed, composed.HasField("rank")) == (0.25, 0.5, 7, False)
    assert composed.method == adapters_pb2.COMPOSE_METHOD_DARE_TIES
    assert common.stack_from_proto(composed.stack.entries) == STACK
    info = AdapterInfo("acme", "default", None, (VERSION,), {"best": 3}, 1.0, 2.0, 4, shared=True)
    assert unset(adapters.adapter_to_proto(info)) == {"current"}
    assert adapters.adapter_to_proto(info).previous_version == 4
    assert adapters.adapter_to_proto(replace(info, current=VERSION)).current == message


def test_merges_carry_what_is_set() -> None:
    request = adapters_pb2.ComposeAdapterRequest(name="mix", adapters=[common_pb2.StackEntry(adapter="acme")])
    assert adapters.compose_from_proto(request, caller("t")) == ComposeRequest(
        "mix", (StackItem("acme"),), principal=caller("t")
    )
    request.method = adapters_pb2.COMPOSE_METHOD_TIES
    request.rank, request.density, request.seed = 0, 0.0, 0
    got = adapters.compose_from_proto(request, caller("t"))
    assert (got.method, got.rank, got.density, got.seed) == (ComposeMethod.TIES, 0, 0.0, 0)
    request.method = 99  # type: ignore[assignment]
    with pytest.raises(Error, match="99"):
        adapters.compose_from_proto(request, caller("t"))


def test_specs_round_trip() -> None:
    assert training.spec_from_proto(training_pb2.TrainSettings()) == TrainSpec()
    spec = TrainSpec(
        rank=4,
        alpha=8.0,
        rslora=True,
        dropout=0.1,
        target_modules=("q_proj",),
        layers=(3, 5),
        learning_rate=1e-3,
        lr_scheduler="cosine",
        warmup_ratio=0.0,
        warmup_steps=11,
        beta1=0.8,
        beta2=0.9,
        weight_decay=0.01,
        max_grad_norm=0.5,
        epochs=1.5,
        max_steps=7,
        batch_size=2,
        max_length=99,
        seed=-3,
        validation_split=0.25,
        eval_steps=3,
        early_stopping_patience=2,
        method="dpo",
        beta=0.3,
        replay="ds-1",
        replay_rows=9,
        chat_template_kwargs='{"enable_thinking": false}',
        context="The mill opens at 6:40.",
        on_policy=True,
    )
    assert all(getattr(spec, f.name) != getattr(TrainSpec(), f.name) for f in fields(TrainSpec))
    message = common.to_proto(training_pb2.TrainSettings, spec)
    assert unset(message) == set()
    assert training.spec_from_proto(message) == spec
    assert training.spec_from_proto(common.to_proto(training_pb2.TrainSettings, TrainSpec())) == TrainSpec()


def test_jobs_carry_every_field() -> None:
    message = training.job_to_proto(JOB)
    assert unset(message) == set()
    assert (message.state, message.error.reason) == (training_pb2.JOB_STATE_FAILED, "NAN")
    assert (message.tenant, message.created_at, message.started_at, message.finished_at) == ("default", 1.0, 3.0, 4.0)
    assert message.adapter == adapters.version_to_proto(VERSION)
    assert message.gate == training_pb2.Gate(
        kind=training_pb2.Gate.KIND_MIN_ACCURACY, min_accuracy=0.5, match=training_pb2.Gate.MATCH_EXACT
    )
    ((side, said),) = [(a.side, a.text) for row in message.answers for a in row.answers]
    assert (side, said) == ("base", "There.")
    young = replace(JOB, error="", error_code="", published=None, started=None, request=JobRequest("a", "ds-1", "t"))
    assert unset(training.job_to_proto(young)) >= {"error", "adapter", "started_at", "gate", "on_top_of"}


def test_what_is_asked_for_arrives() -> None:
    wanted = replace(JOB.request, recipe="style", spec=TrainSpec(rank=4), given=frozenset({"rank"}))
    request = common.to_proto(training_pb2.CreateJobRequest, wanted, settings=training_pb2.TrainSettings(rank=4))
    assert unset(request) == set()
    found = training.job_from_proto(request, CALL)
    assert (found, found.recipe, found.given) == (wanted, "style", frozenset({"rank"}))
    bare = training.job_from_proto(training_pb2.CreateJobRequest(), CALL)
    assert bare == JobRequest("", "", CALL.principal.tenant)
    assert bare.given == frozenset()
    gates = training_pb2.Gate.Kind.items(), training_pb2.Gate.Match.items()
    for name, number in gates[0]:
        request.gate.kind = number
        assert training.job_from_proto(request, CALL).gate.kind == name.removeprefix("KIND_").lower() * bool(number)
    request.gate.match = training_pb2.Gate.MATCH_UNSPECIFIED
    assert training.job_from_proto(request, CALL).gate.match == ""


def test_unknown_enum_values_are_refused() -> None:
    request = training_pb2.CreateJobRequest()
    request.gate.MergeFromString(b"\x08\x63")  # kind = 99
    with pytest.raises(Error, match=r"gate\.kind"):
        training.job_from_proto(request, CALL)
    with pytest.raises(Error, match=r"states\[1\]"):
        training.states_from_proto([training_pb2.JOB_STATE_QUEUED, training_pb2.JOB_STATE_UNSPECIFIED])


def test_a_state_that_no_job_has_is_refused() -> None:
    with pytest.raises(Error) as caught:
        training.states_from_proto([training_pb2.JOB_STATE_QUEUED, training_pb2.JOB_STATE_VALIDATING_FILES])
    assert [v.field for v in caught.value.violations] == ["states[1]"]


def test_events_and_datasets() -> None:
    message = training.event_to_proto(EVENT)
    assert (message.sequence, message.time, message.step, message.total_steps) == (4, 9.5, 3, 9)
    assert (message.type, message.state) == (training_pb2.JOB_EVENT_TYPE_STATE, training_pb2.JOB_STATE_RUNNING)
    assert unset(message) == set()
    assert dict(message.metrics) == EVENT.event.metrics
    assert unset(training.dataset_to_proto(DATASET)) == set()
    assert training.dataset_to_proto(DATASET).size_bytes == 1 << 32
    report = DatasetReport(5, 100, 50, 30, 1, 12, (RowProblem(3, "bad", "messages[0].role"),), 4)
    answer = training.report_to_proto(report)
    assert (answer.valid, answer.problems_total, answer.problems[0].line, answer.summary.estimated_steps) == (
        False,
        4,
        3,
        12,
    )
    assert not answer.summary.HasField("estimated_seconds")
    parts = (MarkedText("Where?", False), MarkedText("Here.", True))
    answer = training.report_to_proto(
        replace(
            report,
            too_long=2,
            pairs=True,
            notes=(Note("FEW_ROWS", "few", 3, 1),),
            estimated_seconds=0.0,
            estimated_memory_bytes=1 << 40,
            estimated_from="a job",
            shown=(MarkedRow(7, parts, parts[:1], 9),),
        )
    )
    summary = answer.summary
    assert (summary.too_long, summary.pairs, list(summary.warnings), summary.estimated_from) == (
        2,
        True,
        ["few"],
        "a job",
    )
    (note,) = summary.notes
    assert (note.code, note.text, note.count, note.line) == ("FEW_ROWS", "few", 3, 1)
    assert (summary.HasField("estimated_seconds"), summary.estimated_memory_bytes) == (True, 1 << 40)
    (row,) = answer.rows
    assert (row.line, row.tokens, [(t.text, t.trained) for t in row.text]) == (
        7, 9, [("Where?", False), ("Here.", True)]
    )  # fmt: skip
    assert [t.text for t in row.rejected] == ["Where?"]


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (FinishReason, inference_pb2.FinishReason),
        (Readiness, server_pb2.ServerState),
        (JobState, training_pb2.JobState),
        (TrainEventType, training_pb2.JobEventType),
        (ComposeMethod, adapters_pb2.ComposeMethod),
        (VersionState, adapters_pb2.AdapterState),
    ],
)
def test_words_are_those_of_the_enums(ours, theirs) -> None:
    numbers = [number for number in theirs.values() if number]
    words = {common.word(theirs.DESCRIPTOR, number, "field") for number in numbers}
    assert words - {"validating_files"} == set(ours)  # no job enters that state; the proto keeps its number
    assert common.numbers(theirs.DESCRIPTOR) == {"": 0} | {
        common.word(theirs.DESCRIPTOR, n, "field"): n for n in numbers
    }
    assert common.word(theirs.DESCRIPTOR, 0, "field") == ""
