"""Training jobs and their events."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..comparison import Comparison, judged, read_comparison
from .adapters import AdapterVersion, StackItem
from .datasets import DatasetNote

FINAL_STATES = frozenset({"succeeded", "failed", "cancelled"})
"""States in which a job has ended."""

SETTLED_STATES = FINAL_STATES - {"failed"}
"""States in which a job stays for good; a failed one may be resumed."""


@dataclass(frozen=True, slots=True)
class JudgedAnswer:
    """What was answered to a held-out question (cut where it is long), and whether it counts."""

    text: str
    right: bool


@dataclass(frozen=True, slots=True)
class JudgedRow:
    """A held-out question, the texts that are expected, and the answers.

    ``answers`` has those of ``base``, ``prompt`` (the base with the prompt that is compared), ``retrieval`` (the base
    with passages of documents), ``init`` (the version that the job goes on from), ``adapter`` and
    ``adapter_retrieval``, as far as they were asked.
    """

    question: str
    expected: tuple[str, ...]
    answers: dict[str, JudgedAnswer]
    passages: tuple[str, ...] = ()
    """What was found for it in the documents that are compared, the best first (cut where it is long)."""


@dataclass(frozen=True, slots=True)
class JobInfo:
    """A training job as it stood when it was asked for."""

    id: str
    name: str
    state: str
    """queued, running, paused, evaluating, publishing, succeeded, failed or cancelled."""
    step: int = 0
    total_steps: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    error: str = ""
    error_reason: str = ""
    adapter: AdapterVersion | None = None
    """What it published."""
    dataset_id: str = ""
    validation_dataset_id: str = ""
    settings: dict[str, object] = field(default_factory=dict)
    on_top_of: tuple[tuple[StackItem, ...], ...] = ()
    init_from: str = ""
    gate: str = ""
    """``improves``, ``min_accuracy 0.9`` or ``min_accuracy 0.9 exact``; empty: none."""
    gate_result: str = ""
    """Why what it published was not promoted; empty: it was, or there is nothing yet."""
    replaced: str = ""
    """What the name meant when the result was published, ``name@version``; empty: nothing. Not in lists."""
    answers: tuple[JudgedRow, ...] = ()
    """Examples of what held-out rows were answered. Not in lists."""
    compare_prompt: str = ""
    compare_documents: str = ""
    """Dataset of the documents that it is compared with; empty: none."""
    compare_top_k: int = 0
    """Passages of them that are put before a row."""
    notes: tuple[DatasetNote, ...] = ()
    """What may not be meant about its data."""
    metadata: dict[str, str] = field(default_factory=dict)
    tenant: str = ""
    created_at: float = 0.0
    started_at: float = 0.0
    finished_at: float = 0.0
    last_sequence: int = 0

    @property
    def final(self) -> bool:
        """Whether it has ended."""
        return self.state in FINAL_STATES

    @property
    def comparison(self) -> Comparison | None:
        """How base, base with prompt or passages, and adapter did on the held-out rows.

        None without ``compare_prompt`` and ``compare_documents``.
        """
        return read_comparison(self.metrics)

    @property
    def judged(self) -> str:
        """How answers were judged, such as ``by expect, contained: 24 rows``; empty: none were asked for."""
        return judged(self.metrics)


@dataclass(frozen=True, slots=True)
class JobEvent:
    """One thing that happened in a job.

    ``type`` is ``state``, ``step``, ``evaluation``, ``checkpoint`` or ``message``.
    """

    sequence: int
    time: float
    type: str
    message: str = ""
    state: str | None = None
    step: int = 0
    total_steps: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    answers: tuple[JudgedRow, ...] = ()
    """Examples of what held-out rows were answered, with the evaluation that asked them."""
