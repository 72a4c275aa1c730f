"""The seam between the front and the engine: plain messages, and the protocol that carries them.

The front never sees a tensor and the engine never sees the database. Messages hold only built-in types,
enums and the frozen dataclasses of this package, so that they can cross a socket unchanged.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from .errors import Error
from .jobs import TrainCommand, TrainEvent
from .types import BASE, AdapterVersion, FinishReason, Grammar, Pooling, SamplingParams, Stack, TokenLogprob

QUEUE_WAIT_BOUNDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
"""Upper bounds of the waits that ``EngineStats.queue_waits`` counts apart, seconds."""


@dataclass(frozen=True, slots=True)
class GenerateCommand:
    """One generation for the engine: token ids in, token ids out."""

    id: str
    prompt_ids: tuple[int, ...]
    stack: Stack = BASE
    sampling: SamplingParams = SamplingParams()
    tenant: str = field(kw_only=True)
    seconds_left: float | None = None
    """Time, from the moment that the command is given, after which the answer is of no use."""
    grammar: Grammar | None = None
    """Only tokens that keep to it are chosen; the answer ends where it is complete."""


@dataclass(frozen=True, slots=True)
class SequenceTimes:
    """Where the time of one sequence went in the engine, in seconds. A preemption lengthens what it interrupts."""

    waiting: float
    """From its arrival to its first step."""
    loading: float
    """Of ``waiting``: until the last of its adapters that were in no memory had been read; 0: none had to be."""
    prefill: float
    """From its first step to its first token, or to the result of a score or an embedding."""
    decode: float = 0.0
    """From its first token to its last."""
    preempted: int = 0
    """How often it was preempted, and computed again."""


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """Tokens that one step (or several, when the reader lags) added to a generation.

    The last event has a ``finish_reason``; with ERROR, ``error_code`` (a ``Code`` value) and ``error`` say why.
    The first token and the last event have ``times`` as of then.
    """

    id: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    error_code: str = ""
    error: str = ""
    cached_tokens: int = 0
    times: SequenceTimes | None = None


@dataclass(frozen=True, slots=True)
class ScoreCommand:
    """Score ``continuation_ids`` after ``prompt_ids`` under a stack."""

    id: str
    prompt_ids: tuple[int, ...]
    continuation_ids: tuple[int, ...]
    stack: Stack = BASE
    tenant: str = field(kw_only=True)


@dataclass(frozen=True, slots=True)
class ScoreResult:
    """Natural-log probability of each continuation token, and whether each was the most likely one."""

    logprobs: tuple[float, ...]
    greedy: tuple[bool, ...]
    times: SequenceTimes | None = None
    cached_tokens: int = 0
    """Prompt tokens that the prefix cache gave."""


@dataclass(frozen=True, slots=True)
class EmbedCommand:
    """Pool the hidden states of ``prompt_ids`` under a stack, those after the model's final norm."""

    id: str
    prompt_ids: tuple[int, ...]
    stack: Stack = BASE
    pooling: Pooling = Pooling.MEAN
    normalize: bool = True
    """Scale the embedding to length 1."""
    tenant: str = field(kw_only=True)


@dataclass(frozen=True, slots=True)
class EmbedResult:
    """An embedding: ``EngineInfo.hidden_size`` float32, little-endian."""

    values: bytes
    times: SequenceTimes | None = None


@dataclass(frozen=True, slots=True)
class ProfileCommand:
    """Write a Chrome trace of the next ``seconds`` to the file ``output``, compressed with gzip."""

    id: str
    seconds: float
    output: str
    most_events: int
    kernels: bool = True
    """Whether operators and kernels are recorded too, a tenth of the time."""


@dataclass(frozen=True, slots=True)
class ProfileResult:
    """What the file of a profile holds."""

    events: int
    events_dropped: int = 0
    """Those beyond the most that were asked for."""


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What is fixed once the engine is up."""

    base_name: str
    base_fingerprint: str
    architecture: str
    vocab_size: int
    max_context: int
    eos_token_ids: tuple[int, ...]
    device: str
    """``cpu`` or ``cuda:0``."""
    dtype: str
    num_layers: int
    linear_modules: dict[str, tuple[int, int]]
    """Every linear that an adapter may target: ``model.layers.0.self_attn.q_proj`` -> (in_features, out_features)."""
    tokenizer_path: str
    """Folder with tokenizer.json, tokenizer_config.json and the chat template."""
    base_revision: str = ""
    """Commit of the hub's repository that the base is from; empty: from elsewhere."""
    hidden_size: int = 0
    """Dimensions of a hidden state, and so of an embedding."""
    training_dtype: str = "float32"
    """Precision of activations in training."""
    kv_page_tokens: int = 0
    """Token positions of a KV page."""
    base_damage: str = ""
    """What was wrong with the stored copy of the base, which was made again; empty: nothing."""
    max_batch_tokens: int = 0
    """Tokens per serve step."""
    max_running: int = 0
    """Sequences in a serve step."""
    weight_bytes: int = 0
    """Of the base's weights as they are stored: linear layers in NF4, the rest in 16 bits."""
    weight_bytes_16bit: int = 0
    """Of the same weights without quantisation."""
    weights: str = ""
    """``packed`` where memory holds linear layers in NF4; ``unpacked`` where it holds them in the compute type."""

    def training_bytes(self, rank: int) -> int:
        """What a job of that rank on all linear layers holds: weights, gradients and two moments, all in float32.

        Activations come on top; they follow the micro-batch.
        """
        rows = sum(width + height for width, height in self.linear_modules.values())
        return 4 * 4 * rank * rows


@dataclass(frozen=True, slots=True)
class GpuStats:
    """What torch's allocator and NVML tell of the GPU. Sizes in bytes."""

    allocated: int
    """Of tensors, as torch's allocator counts them."""
    reserved: int
    """What torch's allocator holds of the GPU: tensors, and what it keeps for the next ones."""
    other_processes: int | None = None
    """What other processes hold; None where NVML is missing, or does not show them and this one, as in a container."""
    utilization: float | None = None
    """Share of the last moment in which the GPU was busy, 0 to 1; None where NVML is missing or cannot tell."""


@dataclass(frozen=True, slots=True)
class EngineStats:
    """What changes: gauges as of now, counters since start. Sizes in bytes, times in seconds."""

    running: int = 0
    waiting: int = 0
    kv_pages_used: int = 0
    kv_pages_total: int = 0
    kv_bytes_total: int = 0
    """What all of these pages take once they have been written to."""
    memory: dict[str, int] = field(default_factory=dict)
    """kind -> bytes: base, adapters, kv_cache, training, other, free, total, process; graphs where there are any.

    ``adapters`` is what is allocated for them. On the host the first five make up ``process``, the resident memory,
    and of ``adapters`` and ``kv_cache`` what has been written to. On a GPU all up to ``free`` make up ``total``."""
    gpu: GpuStats | None = None
    """None on the host."""
    resident: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """tier -> digests of the adapter versions there (``device``, ``host``)."""
    adapters_running: dict[str, int] = field(default_factory=dict)
    """digest -> sequences in the batch that use it."""
    adapters_waiting: dict[str, int] = field(default_factory=dict)
    """digest -> sequences that wait for a place and use it."""
    adapter_rows_used: int = 0
    """Rank rows of the device that resident adapters take."""
    adapter_rows_total: int = 0
    resident_bytes: dict[str, int] = field(default_factory=dict)
    """tier -> bytes that the adapters there take."""
    adapter_loads: dict[str, tuple[int, float]] = field(default_factory=dict)
    """tier -> (loads, seconds) since start: ``host`` reads files, ``device`` copies from the host."""
    adapter_hits: dict[str, int] = field(default_factory=dict)
    """tier -> adapters of requests that were there when the request came; ``disk``: in no memory."""
    adapter_evictions: int = 0
    preemptions: int = 0
    draft_tokens: int = 0
    """Tokens of drafts that steps computed."""
    accepted_tokens: int = 0
    """Those of them that became part of answers."""
    prefix_hit_tokens: int = 0
    steps: dict[str, tuple[int, float]] = field(default_factory=dict)
    """kind (prefill, decode, train) -> (steps, seconds) since start."""
    training_jobs: tuple[str, ...] = ()
    suspended_jobs: tuple[str, ...] = ()
    """Those of ``training_jobs`` that gave their memory up to requests, and go on from their checkpoints later."""
    step_limits: dict[str, int] = field(default_factory=dict)
    """Most ``tokens`` and ``sequences`` of a step now: as configured, or less since memory ran out."""
    out_of_memory: dict[str, int] = field(default_factory=dict)
    """Since start: ``errors`` of computations for requests; what was given up for them: ``micro_batches`` dropped,
    ``jobs`` suspended, ``steps`` halved."""
    queue_waits: tuple[int, ...] = ()
    """Requests that started, by their wait: one count for each of ``QUEUE_WAIT_BOUNDS``, one for those beyond."""
    queue_wait_seconds: float = 0.0
    """Sum of these waits, each from the request's arrival in the engine to its first step."""
    grammars: dict[str, int] = field(default_factory=dict)
    """Since start: ``compiled``; ``refused``; ``lost``, whose process died; ``restarts`` of their parent process."""
    cuda_graphs: int | None = None
    """Graphs of decode steps that are kept; None where the engine makes none, 0 where none could be captured."""
    cuda_graph_failures: int = 0
    """Captures of graphs that failed since start; steps that needed them ran without."""


class EnginePhase(StrEnum):
    """How far the engine's life has come. FAILED is final; everything else may be followed by RESTARTING."""

    STARTING = "starting"
    READY = "ready"
    RESTARTING = "restarting"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class EngineState:
    """A phase; in a start its slow step, and the fraction of that which is done where it is known."""

    phase: EnginePhase
    step: str = ""
    fraction: float | None = None
    error: Error | None = None
    """Why the engine failed."""


class ReplicaState(StrEnum):
    """What a replica does with new commands. Only a READY one is given any."""

    READY = "ready"
    RESTARTING = "restarting"
    """Its engine starts again."""
    DRAINING = "draining"
    """It finishes what it has, and is replaced then."""
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Replica:
    """One engine with its base. An embedded backend has one; a Ray cluster may have many."""

    id: str
    state: ReplicaState
    node: str
    """Name of the host that it runs on."""
    running: int = 0
    """Sequences in its batch."""
    waiting: int = 0
    queued_tokens: int = 0
    """Tokens of prompts and of the longest answers that its requests may still take."""
    resident: tuple[str, ...] = ()
    """Digests of the adapter versions that it holds in memory."""
    training_jobs: tuple[str, ...] = ()


class Backend(Protocol):
    """The engines as the front sees them: one in a child process, or replicas elsewhere.

    Iterators end after their last event; closing one early (``aclose``, task cancelled) aborts the work behind it
    within one step. Every failure is a ``core.errors.Error``.
    """

    async def start(self) -> EngineInfo: ...

    async def close(self) -> None: ...

    def subscribe(self, listener: Callable[[EngineState], None]) -> None:
        """Call ``listener`` with each change of the engine's state, on the front's event loop, from now on."""
        ...

    def generate(self, command: GenerateCommand) -> AsyncIterator[TokenEvent]: ...

    async def score(self, command: ScoreCommand) -> ScoreResult: ...

    async def embed(self, command: EmbedCommand) -> EmbedResult: ...

    async def load(self, adapter: AdapterVersion) -> None:
        """Make an adapter version resident, checking that it fits the base."""
        ...

    async def unload(self, digest: str) -> None:
        """Drop an adapter version from memory once nothing uses it. Unknown digests are fine."""
        ...

    async def pin(self, adapters: Sequence[AdapterVersion]) -> None:
        """Never evict these versions, and only these, from now on. An engine that starts again has none pinned.

        Raises RESOURCE_EXHAUSTED, and changes nothing, when the largest adapter would not fit beside them.
        """
        ...

    def train(self, command: TrainCommand) -> AsyncIterator[TrainEvent]:
        """Run a job to its end: STEP events, then EVALUATION; the adapter lies in ``command.output`` when it ends."""
        ...

    async def stats(self) -> EngineStats: ...

    async def profile(self, seconds: float, output: str, *, most_events: int, kernels: bool) -> ProfileResult:
        """Write a Chrome trace of the next ``seconds`` to ``output``, compressed with gzip.

        Raises RESOURCE_EXHAUSTED while another profile is taken.
        """
        ...

    async def replicas(self) -> tuple[Replica, ...]:
        """The replicas as they are now, by id."""
        ...

    async def drain(self, replica_id: str) -> None:
        """Give a replica no new work. It finishes its requests, hands its jobs back, and another takes its place.

        Raises NOT_FOUND for an unknown id, FAILED_PRECONDITION where nothing could take its place.
        """
        ...
