"""A scripted engine: emits the tokens it was given, writes down what it was asked, fails or hangs on demand."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from loramux_server.core.backend import (
    EmbedCommand,
    EmbedResult,
    EngineInfo,
    EngineState,
    EngineStats,
    GenerateCommand,
    ProfileResult,
    Replica,
    ReplicaState,
    ScoreCommand,
    ScoreResult,
    SequenceTimes,
    TokenEvent,
)
from loramux_server.core.callers.principal import LOCAL, Principal, Scope
from loramux_server.core.errors import LOGITS_NOT_FINITE, Code, Error, replica_not_found
from loramux_server.core.jobs import TrainCommand, TrainEvent
from loramux_server.core.types import AdapterVersion, FinishReason
from loramux_server.services.access.credentials import Credentials
from tests.rows import JobRows, rows_of

TOKENS_PER_EVENT = 1


def linear_modules(layers: int = 4) -> dict[str, tuple[int, int]]:
    attention = dict.fromkeys(("q_proj", "k_proj", "v_proj", "o_proj"), (16, 16))
    mlp = {"gate_proj": (16, 32), "up_proj": (16, 32), "down_proj": (32, 16)}
    return {
        f"model.layers.{i}.{group}.{name}": shape
        for i in range(layers)
        for group, linears in (("self_attn", attention), ("mlp", mlp))
        for name, shape in linears.items()
    }


def engine_info(vocab_size: int, *, tokenizer_path: str = "", max_context: int = 256) -> EngineInfo:
    return EngineInfo(
        base_name="tiny/base",
        base_fingerprint="f" * 64,
        architecture="LlamaForCausalLM",
        vocab_size=vocab_size,
        max_context=max_context,
        eos_token_ids=(2, 0),
        device="cpu",
        dtype="float32",
        num_layers=4,
        linear_modules=linear_modules(),
        tokenizer_path=tokenizer_path,
        hidden_size=4,
        max_batch_tokens=512,
        max_running=64,
    )


@dataclass
class Script:
    """What the engine answers to one generation: token ids, cut into events, then an end, an error or nothing."""

    token_ids: tuple[int, ...] = ()
    per_event: int = TOKENS_PER_EVENT
    finish: FinishReason = FinishReason.LENGTH
    error: Error | None = None
    """Reported in the last event, as the engine does for one sequence."""
    raises: Error | None = None
    """Raised instead of a last event, as a dead engine does."""
    hang: bool = False
    """Wait for ever after the tokens."""
    times: SequenceTimes | None = None
    """Those of the whole answer."""


@dataclass
class FakeBackend:
    """``script`` gives the answer to a generation; ``training`` plays a training job."""

    info: EngineInfo
    script: Callable[[GenerateCommand], Script] = field(default=lambda _: Script())
    training: Callable[[TrainCommand], AsyncIterator[TrainEvent]] | None = None
    commands: list[GenerateCommand] = field(default_factory=list)
    scores: list[ScoreCommand] = field(default_factory=list)
    embedded: list[EmbedCommand] = field(default_factory=list)
    embed_error: Error | None = None
    trained: list[TrainCommand] = field(default_factory=list)
    rows: list[JobRows] = field(default_factory=list)
    """Those of the commands in ``trained``."""
    loaded: list[AdapterVersion] = field(default_factory=list)
    unloaded: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    most_kept: int = 1000
    aborted: list[str] = field(default_factory=list)
    """Generations whose iterator was closed before its last event."""
    open: int = 0
    load_error: Error | None = None
    not_finite: set[str] = field(default_factory=set)
    """Digests of adapters whose logits are not finite."""
    profiled: list[tuple[float, int, bool]] = field(default_factory=list)
    """Seconds, most events, and whether kernels were wanted."""
    profile_data: bytes = b"a profile" * 200_000
    profile_error: Error | None = None
    profile_hangs: bool = False
    fleet: tuple[str, ...] = ("engine",)
    """Ids of the replicas."""
    drained: list[str] = field(default_factory=list)
    on_load: Callable[[AdapterVersion], None] | None = None
    hanging: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once a generation or job waits for ever."""

    async def start(self) -> EngineInfo:
        return self.info

    async def close(self) -> None: ...

    async def generate(self, command: GenerateCommand) -> AsyncIterator[TokenEvent]:
        self.commands.append(command)
        script = self.script(command)
        done = False
        self.open += 1
        try:
            for event in events(command.id, script):
                await asyncio.sleep(0)
                if event.finish_reason is not None:
                    done = True
                yield event
            if script.raises is not None:
                done = True
                raise script.raises
            if script.hang:
                self.hanging.set()
                await asyncio.Event().wait()
        finally:
            self.open -= 1
            if not done:
                self.aborted.append(command.id)

    async def score(self, command: ScoreCommand) -> ScoreResult:
        self.scores.append(command)
        if any(entry.adapter.digest in self.not_finite for entry in command.stack.entries):
            raise Error(Code.FAILED_PRECONDITION, "the logits are not finite", reason=LOGITS_NOT_FINITE)
        count = len(command.continuation_ids)
        logprobs, greedy = tuple(-float(i) for i in range(count)), tuple(i == 0 for i in range(count))
        return ScoreResult(logprobs, greedy, cached_tokens=len(command.prompt_ids) - 1)

    async def embed(self, command: EmbedCommand) -> EmbedResult:
        self.embedded.append(command)
        if self.embed_error is not None:
            raise self.embed_error
        values = (float(len(command.prompt_ids)), 0.5, -1.0, 2.0**-126)
        return EmbedResult(struct.pack("<4f", *values))

    async def load(self, adapter: AdapterVersion) -> None:
        if self.load_error is not None:
            raise self.load_error
        if self.on_load is not None:
            self.on_load(adapter)
        self.loaded.append(adapter)

    def subscribe(self, listener: Callable[[EngineState], None]) -> None:
        """It never changes."""

    async def unload(self, digest: str) -> None:
        self.unloaded.append(digest)

    async def pin(self, adapters: Sequence[AdapterVersion]) -> None:
        if len(adapters) > self.most_kept:
            raise Error(Code.RESOURCE_EXHAUSTED, "no room to keep them", reason="TOO_MANY_PINNED")
        self.kept = [adapter.ref for adapter in adapters]

    async def train(self, command: TrainCommand) -> AsyncIterator[TrainEvent]:
        self.trained.append(command)
        self.rows.append(rows_of(command))
        if self.training is None:
            raise Error(Code.UNAVAILABLE, "the engine does not train")
        async for event in self.training(command):
            yield event

    async def profile(self, seconds: float, output: str, *, most_events: int, kernels: bool) -> ProfileResult:
        self.profiled.append((seconds, most_events, kernels))
        await asyncio.to_thread(Path(output).write_bytes, self.profile_data)
        if self.profile_error is not None:
            raise self.profile_error
        if self.profile_hangs:
            self.hanging.set()
            await asyncio.Event().wait()
        return ProfileResult(7, 1)

    async def replicas(self) -> tuple[Replica, ...]:
        resident = tuple(adapter.digest for adapter in self.loaded)
        return tuple(Replica(id, ReplicaState.READY, "host", 1, 2, 30, resident, ("job",)) for id in self.fleet)

    async def drain(self, replica_id: str) -> None:
        if replica_id not in self.fleet:
            raise replica_not_found(replica_id)
        self.drained.append(replica_id)

    async def stats(self) -> EngineStats:
        return EngineStats(resident={"device": tuple(adapter.digest for adapter in self.loaded)})


def events(id: str, script: Script) -> Iterable[TokenEvent]:
    ids = script.token_ids
    groups = [ids[i : i + script.per_event] for i in range(0, len(ids), script.per_event)]
    open_ended = script.hang or script.raises is not None
    if script.error is not None or (not groups and not open_ended):
        groups.append(())
    for i, group in enumerate(groups):
        last = i == len(groups) - 1 and not open_ended
        if last and script.error is not None:
            yield TokenEvent(
                id, group, finish_reason=FinishReason.ERROR, error_code=script.error.code, error=script.error.message
            )
        else:
            times = script.times and replace(script.times, decode=script.times.decode if last else 0.0)
            finish = script.finish if last else None
            yield TokenEvent(id, group, finish_reason=finish, times=times if last or i == 0 else None)


class Open:
    """Takes everybody for the default tenant, without a database to ask for keys."""

    async def authenticate(self, credentials: Credentials) -> Principal:
        return LOCAL


def caller(tenant: str) -> Principal:
    return Principal(tenant, frozenset(Scope))
