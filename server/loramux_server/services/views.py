"""What the services answer: plain frozen values that a door turns into its own words."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic, TypeVar

from ..core.jobs import JobState, TrainEvent, TrainSpec
from ..core.types import FinishReason, Message, StackEntry, StackItem, TokenLogprob, Usage


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Choice:
    """One whole answer of a request."""

    index: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...]
    finish_reason: FinishReason


@dataclass(frozen=True, slots=True)
class Completion:
    """All answers of a request, in order of index, what they cost and which versions made them."""

    id: str
    choices: tuple[Choice, ...]
    usage: Usage
    adapters: tuple[StackEntry, ...]


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """Score ``continuation`` after a prompt or messages (exactly one of them) under a stack."""

    continuation: str
    prompt: str | None = None
    messages: tuple[Message, ...] = ()
    adapters: tuple[StackItem, ...] = ()
    tenant: str = "default"
    request_id: str = ""
    deadline: float | None = None
    """Seconds on the monotonic clock."""


@dataclass(frozen=True, slots=True)
class Score:
    """One entry per continuation token: its id, text, natural-log probability, and whether it was the likeliest."""

    token_ids: tuple[int, ...]
    tokens: tuple[str, ...]
    logprobs: tuple[float, ...]
    greedy: tuple[bool, ...]
    prompt_tokens: int
    adapters: tuple[StackEntry, ...]

    @property
    def total_logprob(self) -> float:
        return sum(self.logprobs)


@dataclass(frozen=True, slots=True)
class Tokens:
    """Token ids of a text as the model would see it, and the text of each."""

    ids: tuple[int, ...]
    pieces: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class AdapterInfo:
    """One adapter version as listed."""

    name: str
    version: int
    digest: str
    rank: int
    state: str
    """``ready``, ``quarantined`` or ``deleted``."""
    size_bytes: int
    base_fingerprint: str
    target_modules: tuple[str, ...] = ()
    current: bool = False
    """Whether the bare name means this version."""
    pinned: bool = False
    tier: str = "disk"
    """Fastest place it is in now: ``device``, ``host`` or ``disk``."""
    created_at: float = 0.0
    """Seconds since the epoch, as all times here."""
    last_used_at: float | None = None
    job_id: str = ""
    """The job that trained it, if one did."""
    dataset_digest: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)

    @property
    def ref(self) -> str:
        """``name@version``."""
        return f"{self.name}@{self.version}"


@dataclass(frozen=True, slots=True)
class DatasetInfo:
    """A stored dataset. ``id`` is content-addressed: the same bytes give the same id."""

    id: str
    size_bytes: int
    created_at: float = 0.0
    filename: str = ""


@dataclass(frozen=True, slots=True)
class RowProblem:
    """What is wrong with one line of a dataset (lines count from 1; 0: the whole file)."""

    line: int
    description: str
    field: str = ""


@dataclass(frozen=True, slots=True)
class DatasetReport:
    """What a dataset holds, found without training on it."""

    rows: int
    tokens: int
    learned_tokens: int
    """Tokens that carry loss."""
    longest: int
    """Tokens of the longest row."""
    duplicates: int
    problems: tuple[RowProblem, ...]

    @property
    def ok(self) -> bool:
        return not self.problems


@dataclass(frozen=True, slots=True)
class CreateJobRequest:
    """A training job as a door hands it over, before any check."""

    name: str
    dataset_id: str
    validation_dataset_id: str = ""
    spec: TrainSpec = TrainSpec()
    layers: str = ""
    """Layers as text (``15-29`` or ``0,2,4-6``); empty: ``spec.layers`` counts."""
    on_top_of: tuple[tuple[StackItem, ...], ...] = ()
    """Frozen stacks underneath, rows taking turns over them; an empty inner tuple is the base."""
    init_from: str = ""
    gate: str = ""
    """``none`` (or empty), ``improves`` or a JSON object."""
    compare_prompt: str = ""
    metadata: dict[str, str] = field(default_factory=dict)
    idempotency_key: str = ""
    tenant: str = "default"


@dataclass(frozen=True, slots=True)
class JobInfo:
    """A training job as it stands."""

    id: str
    name: str
    state: JobState
    spec: TrainSpec
    dataset_id: str
    validation_dataset_id: str = ""
    on_top_of: tuple[tuple[StackItem, ...], ...] = ()
    """The frozen stacks with their versions pinned: ``name@version`` and weight."""
    created_at: float = 0.0
    started_at: float | None = None
    finished_at: float | None = None
    step: int = 0
    total_steps: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    """The latest value of each number the job reported."""
    adapter: str = ""
    """``name@version`` once published."""
    error: str = ""
    metadata: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class JobEvent:
    """A stored event. ``sequence`` counts from 1 within the job: pass the last one seen to go on after it."""

    job_id: str
    sequence: int
    time: float
    event: TrainEvent


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """A page of a list; ``next_page_token`` is empty on the last one."""

    items: tuple[T, ...]
    next_page_token: str = ""
