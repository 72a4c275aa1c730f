"""What the training services take and answer."""

from __future__ import annotations

from dataclasses import dataclass, field

from ...core.jobs import JobState, JudgedRow, TrainEvent, TrainSpec
from ...core.notes import Note
from ...core.principal import Principal
from ...core.types import StackItem
from ..adapters.types import AdapterVersionInfo


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
    principal: Principal = field(kw_only=True)
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
