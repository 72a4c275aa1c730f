"""What the services answer: plain frozen values that a door turns into its own words."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from ..core.compose import ComposeMethod
from ..core.jobs import JobState, JudgedRow, TrainEvent, TrainSpec
from ..core.notes import Note
from ..core.types import FinishReason, Message, StackEntry, StackItem, TokenLogprob, Usage
from ..store.records import Composition

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
    continue_final_message: bool = False
    """Score what goes on writing the last message, instead of a new turn."""


@dataclass(frozen=True, slots=True)
class Score:
    """One entry per continuation token: its id, text, natural-log probability, and whether it was the likeliest."""

    token_ids: tuple[int, ...]
    tokens: tuple[str, ...]
    logprobs: tuple[float, ...]
    greedy: tuple[bool, ...]
    prompt_tokens: int
    adapters: tuple[StackEntry, ...]
    token_bytes: tuple[bytes, ...] = ()
    """UTF-8 of each token; joined they are the continuation."""

    @property
    def total_logprob(self) -> float:
        return sum(self.logprobs)


@dataclass(frozen=True, slots=True)
class Tokens:
    """Token ids of a text as the model would see it, the vocabulary's spelling of each, and the text itself."""

    ids: tuple[int, ...]
    pieces: tuple[str, ...]
    text: str
    """The prompt, or the conversation after its template."""
    token_bytes: tuple[bytes, ...] = ()
    """The bytes that each token stands for."""


@dataclass(frozen=True, slots=True)
class AdapterVersionInfo:
    """One adapter version. Times in seconds since 1970, as everywhere here."""

    name: str
    version: int
    digest: str
    rank: int
    alpha: float
    rslora: bool
    target_modules: tuple[str, ...]
    """Kinds of linears it changes (``q_proj``)."""
    size_bytes: int
    layers: tuple[int, ...] = ()
    """Decoder layers it changes; empty: all."""
    base_name: str = ""
    base_fingerprint: str = ""
    created_at: float = 0.0
    state: str = "ready"
    """``ready``, ``quarantined`` or ``deleted``."""
    state_reason: str = ""
    job_id: str = ""
    gate_result: str = ""
    """Why the gate of its job did not promote it; empty: it did, or there was none."""
    dataset_digest: str = ""
    parent: str = ""
    for_other_base: bool = False
    """Whether it was made for another base than the server has, and so cannot be used."""
    warnings: tuple[str, ...] = ()
    """What does not keep it from being served, but may not be meant."""
    asked_with: str = ""
    """``messages`` or ``prompt``: how the rows that it learned from are asked; empty: not known."""
    trained_on: tuple[tuple[StackItem, ...], ...] = ()
    composed: Composition | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    tier: str = "disk"
    """Fastest place it is in now: ``device``, ``host`` or ``disk``."""
    pinned: bool = False
    last_used_at: float = 0.0
    """0: never."""

    @property
    def ref(self) -> str:
        """``name@version``."""
        return f"{self.name}@{self.version}"


@dataclass(frozen=True, slots=True)
class AdapterInfo:
    """A name and the versions behind it."""

    name: str
    tenant: str
    current: AdapterVersionInfo | None
    """The version that the plain name means; None: none is usable."""
    versions: tuple[AdapterVersionInfo, ...] = ()
    """Newest first; empty in lists."""
    aliases: dict[str, int] = field(default_factory=dict)
    created_at: float = 0.0
    updated_at: float = 0.0
    previous_version: int = 0
    """The version that the plain name meant before; 0: none."""


@dataclass(frozen=True, slots=True)
class ComposeRequest:
    """A stack to merge into the next version of ``name``; None leaves a setting to its default."""

    name: str
    adapters: tuple[StackItem, ...]
    method: ComposeMethod = ComposeMethod.CAT
    rank: int | None = None
    density: float | None = None
    seed: int | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    tenant: str = "default"


@dataclass(frozen=True, slots=True)
class FileSpec:
    """A file of an adapter folder. An empty ``sha256`` is not checked."""

    name: str
    size: int
    sha256: str = ""


@dataclass(frozen=True, slots=True)
class Download:
    """A version on its way out: its files in the order in which their pieces come."""

    version: AdapterVersionInfo
    files: tuple[FileSpec, ...]
    chunks: AsyncIterator[tuple[str, bytes]]
    """(file name, next bytes of it), at most 1 MiB each. DATA_LOSS before the last of a file that is damaged."""
    lost: tuple[str, ...] = ()
    """Files that the store has lost; nothing is computed with them."""


@dataclass(frozen=True, slots=True)
class DatasetInfo:
    """A stored dataset. The same bytes have the same digest."""

    id: str
    digest: str
    size_bytes: int
    rows: int
    name: str = ""
    created_at: float = 0.0


@dataclass(frozen=True, slots=True)
class RowProblem:
    """What is wrong with one line of a dataset (lines count from 1; 0: the whole file)."""

    line: int
    description: str
    field: str = ""
    in_list: bool = False
    """Whether ``line`` is the number of a row in a JSON list."""


@dataclass(frozen=True, slots=True)
class MarkedText:
    """Text of a tokenised row that is all learned or all not, special tokens shown."""

    text: str
    trained: bool


@dataclass(frozen=True, slots=True)
class MarkedRow:
    """A row as it is trained on; of a pair, with either answer."""

    line: int
    text: tuple[MarkedText, ...]
    rejected: tuple[MarkedText, ...] = ()
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class DatasetReport:
    """What a dataset holds, found without training on it. Counts are of the good rows."""

    rows: int = 0
    tokens: int = 0
    trained_tokens: int = 0
    """Tokens that carry loss."""
    longest: int = 0
    """Tokens of the longest row."""
    duplicates: int = 0
    estimated_steps: int = 0
    problems: tuple[RowProblem, ...] = ()
    """The first ones, by line."""
    problems_total: int = 0
    too_long: int = 0
    """Rows that are refused because they are too long."""
    pairs: bool = False
    notes: tuple[Note, ...] = ()
    """What may not be meant."""
    estimated_seconds: float | None = None
    """Of training on this machine with nothing else to do; None: it cannot be told."""
    estimated_memory_bytes: int | None = None
    """Peak beside what serving holds."""
    estimated_from: str = ""
    """What the seconds were worked out from."""
    shown: tuple[MarkedRow, ...] = ()

    @property
    def warnings(self) -> tuple[str, ...]:
        """The texts of ``notes``."""
        return tuple(note.text for note in self.notes)

    @property
    def ok(self) -> bool:
        return self.problems_total == 0


@dataclass(frozen=True, slots=True)
class CreateJobRequest:
    """A training job as a door hands it over, before any check."""

    name: str
    dataset_id: str
    validation_dataset_id: str = ""
    spec: TrainSpec = field(default_factory=TrainSpec)
    on_top_of: tuple[tuple[StackItem, ...], ...] = ()
    """Frozen stacks underneath, rows taking turns over them; an empty inner tuple is the base."""
    init_from: str = ""
    gate: str = ""
    """Kind of gate: ``improves``, ``min_accuracy``; ``none`` or empty: none."""
    min_accuracy: float = 0.0
    gate_match: str = ""
    """What ``min_accuracy`` counts: answers that hold the expected text (``contained``, the default), or ``exact``."""
    compare_prompt: str = ""
    recipe: str = ""
    """Named settings for what the caller did not give; empty: none."""
    metadata: dict[str, str] = field(default_factory=dict)
    idempotency_key: str = ""
    tenant: str = "default"
    given: frozenset[str] | None = None
    """Names of the settings in ``spec`` that the caller chose; None: all. The others are the server's to choose."""

    def gave(self, setting: str) -> bool:
        """Whether the caller chose a setting."""
        return self.given is None or setting in self.given


@dataclass(frozen=True, slots=True)
class JobInfo:
    """A training job as it stands."""

    id: str
    name: str
    tenant: str
    state: JobState
    spec: TrainSpec
    dataset_id: str
    validation_dataset_id: str = ""
    on_top_of: tuple[tuple[StackItem, ...], ...] = ()
    """The frozen stacks with their versions pinned: ``name@version`` and weight."""
    init_from: str = ""
    created_at: float = 0.0
    started_at: float = 0.0
    """0: not yet."""
    finished_at: float = 0.0
    step: int = 0
    total_steps: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    """The latest value of each number that the job reported."""
    adapter: AdapterVersionInfo | None = None
    """What it published."""
    error_reason: str = ""
    """Stable upper-case word; empty unless the job failed."""
    error: str = ""
    metadata: dict[str, str] = field(default_factory=dict)
    last_sequence: int = 0
    gate: str = ""
    """Kind of gate; empty: none."""
    min_accuracy: float = 0.0
    gate_match: str = ""
    compare_prompt: str = ""
    gate_result: str = ""
    """Why what it published was not promoted; empty: it was."""
    answers: tuple[JudgedRow, ...] = ()
    """Examples of what held-out rows were answered. Not in lists."""
    replaced: str = ""
    """``name@version`` that the name meant when the result was published; empty: none. Not in lists."""
    notes: tuple[Note, ...] = ()
    """What may not be meant about its data."""


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
