"""From messages of the API to the client's own values. Pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar

from google.protobuf.message import Message as ProtoMessage

from .. import types
from ..v1 import adapters_pb2, common_pb2, inference_pb2, server_pb2, training_pb2

V = TypeVar("V")


def word(name: str, prefix: str) -> str:
    """An enum value's name as a plain word: ``JOB_STATE_RUNNING`` -> ``running``."""
    return name.removeprefix(prefix).lower()


def usage(message: common_pb2.Usage) -> types.Usage:
    return types.Usage(message.prompt_tokens, message.completion_tokens, message.cached_tokens)


def applied(messages: Iterable[common_pb2.AppliedAdapter]) -> tuple[types.AppliedAdapter, ...]:
    return tuple(types.AppliedAdapter(m.name, m.version, m.digest, m.weight) for m in messages)


def finish_reason(value: inference_pb2.FinishReason.ValueType) -> str | None:
    return word(inference_pb2.FinishReason.Name(value), "FINISH_REASON_") if value else None


def logprobs(messages: Iterable[inference_pb2.TokenLogprob]) -> tuple[types.TokenLogprob, ...]:
    return tuple(
        types.TokenLogprob(
            m.token_id,
            m.logprob,
            m.token,
            tuple(types.TopLogprob(t.token_id, t.logprob, t.token, t.token_bytes) for t in m.top),
            m.token_bytes,
        )
        for m in messages
    )


def chunk(message: inference_pb2.GenerateResponse) -> types.Chunk:
    return types.Chunk(
        index=message.index,
        text=message.text,
        token_ids=tuple(message.token_ids),
        logprobs=logprobs(message.logprobs),
        finish_reason=finish_reason(message.finish_reason),
        usage=usage(message.usage) if message.HasField("usage") else None,
        adapters=applied(message.adapters),
        request_id=message.request_id,
    )


def completion(message: inference_pb2.GenerateResult) -> types.Completion:
    choices = tuple(
        types.Choice(c.index, c.text, tuple(c.token_ids), logprobs(c.logprobs), finish_reason(c.finish_reason))
        for c in message.choices
    )
    return types.Completion(choices, usage(message.usage), applied(message.adapters), message.request_id)


def score(message: inference_pb2.ScoreResponse) -> types.Score:
    return types.Score(
        tuple(message.token_ids),
        tuple(message.tokens),
        tuple(message.logprobs),
        tuple(message.greedy),
        usage(message.usage),
        applied(message.adapters),
        tuple(message.token_bytes),
    )


def tokens(message: inference_pb2.TokenizeResponse) -> types.Tokens:
    return types.Tokens(tuple(message.token_ids), tuple(message.tokens), message.text, tuple(message.token_bytes))


def stack(message: common_pb2.Stack) -> tuple[types.StackItem, ...]:
    return tuple(types.StackItem(e.adapter, e.weight if e.HasField("weight") else 1.0) for e in message.entries)


def adapter_version(m: adapters_pb2.AdapterVersion) -> types.AdapterVersion:
    return types.AdapterVersion(
        name=m.name,
        version=m.version,
        digest=m.digest,
        rank=m.rank,
        alpha=m.alpha,
        rslora=m.rslora,
        target_modules=tuple(m.target_modules),
        layers=tuple(m.layers),
        size_bytes=m.size_bytes,
        base_name=m.base_name,
        base_fingerprint=m.base_fingerprint,
        created_at=m.created_at,
        state=word(adapters_pb2.AdapterState.Name(m.state), "ADAPTER_STATE_"),
        state_reason=m.state_reason,
        job_id=m.job_id,
        gate_result=m.gate_result,
        dataset_digest=m.dataset_digest,
        parent=m.parent,
        trained_on=tuple(stack(s) for s in m.trained_on),
        asked_with=m.asked_with,
        for_other_base=m.for_other_base,
        warnings=tuple(m.warnings),
        composed=composition(m.composed) if m.HasField("composed") else None,
        metrics=ordered(m.metrics),
        metadata=ordered(m.metadata),
        tier=word(adapters_pb2.AdapterTier.Name(m.tier), "ADAPTER_TIER_"),
        pinned=m.pinned,
        last_used_at=m.last_used_at,
    )


def composition(m: adapters_pb2.Composition) -> types.Composition:
    return types.Composition(
        method=word(adapters_pb2.ComposeMethod.Name(m.method), "COMPOSE_METHOD_"),
        stack=stack(m.stack),
        error=m.error,
        rank=m.rank if m.HasField("rank") else None,
        density=m.density if m.HasField("density") else None,
        seed=m.seed if m.HasField("seed") else None,
    )


def adapter(message: adapters_pb2.Adapter) -> types.Adapter:
    return types.Adapter(
        name=message.name,
        tenant=message.tenant,
        current=adapter_version(message.current) if message.HasField("current") else None,
        versions=tuple(adapter_version(v) for v in message.versions),
        aliases=ordered(message.aliases),
        previous_version=message.previous_version,
        created_at=message.created_at,
        updated_at=message.updated_at,
    )


def dataset(m: training_pb2.Dataset) -> types.Dataset:
    return types.Dataset(m.id, m.name, m.digest, m.size_bytes, m.rows, m.created_at)


def dataset_report(message: training_pb2.ValidateDatasetResponse) -> types.DatasetReport:
    s = message.summary
    return types.DatasetReport(
        valid=message.valid,
        problems=tuple(types.DatasetProblem(p.line, p.field, p.description, p.in_list) for p in message.problems),
        problems_total=message.problems_total,
        rows=s.rows,
        tokens=s.tokens,
        trained_tokens=s.trained_tokens,
        longest_tokens=s.longest_tokens,
        duplicates=s.duplicates,
        estimated_steps=s.estimated_steps,
        estimated_seconds=s.estimated_seconds if s.HasField("estimated_seconds") else None,
        estimated_memory_bytes=s.estimated_memory_bytes if s.HasField("estimated_memory_bytes") else None,
        estimated_from=s.estimated_from,
        too_long=s.too_long,
        pairs=s.pairs,
        warnings=tuple(s.warnings),
        notes=_notes(s.notes),
        shown=tuple(types.MarkedRow(r.line, _marked(r.text), _marked(r.rejected), r.tokens) for r in message.rows),
    )


def _notes(notes: Iterable[training_pb2.DatasetNote]) -> tuple[types.DatasetNote, ...]:
    return tuple(types.DatasetNote(n.code, n.text, n.count, n.line) for n in notes)


def _marked(parts: Iterable[training_pb2.MarkedText]) -> tuple[types.MarkedText, ...]:
    return tuple(types.MarkedText(part.text, part.trained) for part in parts)


def job_state(value: training_pb2.JobState.ValueType) -> str:
    return word(training_pb2.JobState.Name(value), "JOB_STATE_")


def gate(message: training_pb2.Gate) -> str:
    if message.kind in (training_pb2.Gate.KIND_UNSPECIFIED, training_pb2.Gate.KIND_NONE):
        return ""
    kind = word(training_pb2.Gate.Kind.Name(message.kind), "KIND_")
    if message.kind != training_pb2.Gate.KIND_MIN_ACCURACY:
        return kind
    exact = " exact" if message.match == training_pb2.Gate.MATCH_EXACT else ""
    return f"{kind} {message.min_accuracy:g}{exact}"


def job(message: training_pb2.Job) -> types.JobInfo:
    return types.JobInfo(
        id=message.id,
        name=message.name,
        state=job_state(message.state),
        step=message.step,
        total_steps=message.total_steps,
        metrics=ordered(message.metrics),
        error=message.error.message,
        error_reason=message.error.reason,
        adapter=adapter_version(message.adapter) if message.HasField("adapter") else None,
        dataset_id=message.dataset_id,
        validation_dataset_id=message.validation_dataset_id,
        settings=set_fields(message.settings),
        on_top_of=tuple(stack(s) for s in message.on_top_of),
        init_from=message.init_from,
        gate=gate(message.gate),
        gate_result=message.gate_result,
        replaced=message.replaced,
        answers=tuple(map(_judged, message.answers)),
        compare_prompt=message.compare_prompt,
        notes=_notes(message.notes),
        metadata=ordered(message.metadata),
        tenant=message.tenant,
        created_at=message.created_at,
        started_at=message.started_at,
        finished_at=message.finished_at,
        last_sequence=message.last_sequence,
    )


def job_event(message: training_pb2.JobEvent) -> types.JobEvent:
    return types.JobEvent(
        sequence=message.sequence,
        time=message.time,
        type=word(training_pb2.JobEventType.Name(message.type), "JOB_EVENT_TYPE_"),
        message=message.message,
        state=job_state(message.state) if message.state else None,
        step=message.step,
        total_steps=message.total_steps,
        metrics=ordered(message.metrics),
        answers=tuple(map(_judged, message.answers)),
    )


def _judged(row: training_pb2.JudgedRow) -> types.JudgedRow:
    answers = {answer.side: types.JudgedAnswer(answer.text, answer.right) for answer in row.answers}
    return types.JudgedRow(row.question, tuple(row.expected), answers)


def server_info(message: server_pb2.ServerInfo) -> types.ServerInfo:
    base, tokenizer = message.base, message.tokenizer
    return types.ServerInfo(
        version=message.version,
        state=word(server_pb2.ServerState.Name(message.state), "SERVER_STATE_"),
        base_name=base.name,
        base_fingerprint=base.fingerprint,
        architecture=base.architecture,
        max_context=base.max_context,
        num_layers=base.num_layers,
        vocab_size=tokenizer.vocab_size,
        eos_token_ids=tuple(tokenizer.eos_token_ids),
        has_chat_template=tokenizer.has_chat_template,
        device=message.device,
        dtype=message.dtype,
        memory_bytes=ordered(message.memory_bytes),
        adapters_total=message.adapters_total,
        adapters_resident=ordered(message.adapters_resident),
        requests_running=message.requests_running,
        requests_waiting=message.requests_waiting,
        kv_pages_used=message.kv_pages_used,
        kv_pages_total=message.kv_pages_total,
        jobs=ordered(message.jobs),
        limits={f.name: getattr(message.limits, f.name) for f, _ in message.limits.ListFields()},
        uptime_seconds=message.uptime_seconds,
    )


def ordered(values: Mapping[str, V]) -> dict[str, V]:
    """A protobuf map as a dict in order of keys (protobuf's own order is random)."""
    return {key: values[key] for key in sorted(values)}


def set_fields(message: ProtoMessage) -> dict[str, object]:
    """The fields of a flat message that are set, by name; repeated ones as lists."""
    found: dict[str, object] = {}
    for descriptor, value in message.ListFields():
        found[descriptor.name] = list(value) if descriptor.is_repeated else value
    return found
