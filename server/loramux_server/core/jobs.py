"""Training jobs: the settings, the states and the one table of legal moves."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, get_origin, get_type_hints

from .bounds import SEED, Bound, OneOf
from .errors import Code, Error
from .observing.tracing import TraceContext
from .types import BASE, AdapterVersion, Stack, StackItem


class JobState(StrEnum):
    """States of a training job, in OpenAI's words where it has them."""

    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    EVALUATING = "evaluating"
    PUBLISHING = "publishing"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def final(self) -> bool:
        """Whether a job ends here: what it has come to is told, and nobody works on it any more.

        A failed job may be resumed by request.
        """
        return self in (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED)


MOVES: dict[JobState, frozenset[JobState]] = {
    JobState.QUEUED: frozenset({JobState.RUNNING, JobState.PAUSED, JobState.FAILED, JobState.CANCELLED}),
    # running -> queued: the server stopped or the engine died, and the job is taken up again.
    JobState.RUNNING: frozenset(
        {JobState.EVALUATING, JobState.PAUSED, JobState.QUEUED, JobState.FAILED, JobState.CANCELLED}
    ),
    JobState.PAUSED: frozenset({JobState.QUEUED, JobState.FAILED, JobState.CANCELLED}),
    JobState.EVALUATING: frozenset(
        {JobState.PUBLISHING, JobState.PAUSED, JobState.QUEUED, JobState.FAILED, JobState.CANCELLED}
    ),
    JobState.PUBLISHING: frozenset({JobState.SUCCEEDED, JobState.QUEUED, JobState.FAILED}),
    JobState.SUCCEEDED: frozenset(),
    # failed -> queued: resumed by request, from the last checkpoint.
    JobState.FAILED: frozenset({JobState.QUEUED}),
    JobState.CANCELLED: frozenset(),
}


def check_move(job_id: str, old: JobState, new: JobState) -> None:
    """Raise FAILED_PRECONDITION unless a job may go from ``old`` to ``new``."""
    if new not in MOVES[old]:
        raise Error(Code.FAILED_PRECONDITION, f"job {job_id} is {old.value} and cannot become {new.value}")


MAX_REPLAY_ROWS = 100_000
TOP_K, TOP_K_BOUND = 3, Bound(1, 50)
"""Passages that are put before a held-out row."""


@dataclass(frozen=True, slots=True)
class TrainSpec:
    """Settings of one training run, in PEFT's and TRL's words, with their bounds. Defaults follow docs/training.md."""

    rank: Annotated[int, Bound(1, limit="max_rank")] = 16
    alpha: Annotated[float, Bound(0, 1e4, above=True)] = 32.0
    rslora: bool = False
    dropout: Annotated[float, Bound(0, 1, below=True)] = 0.0
    target_modules: tuple[str, ...] = ("all-linear",)
    layers: tuple[int, ...] | None = None
    """Decoder layers that get an adapter; None: all."""
    method: Annotated[str, OneOf(("sft", "dpo", "distill"))] = "sft"
    """``sft``: learn the marked tokens. ``dpo``: prefer each row to its ``rejected`` one. ``distill``: predict the
    marked tokens as the base does after each row's ``teacher`` prompt."""
    context: str = ""
    """Distillation: what the teacher reads before every row that has no context of its own; empty: nothing."""
    on_policy: bool = False
    """Distillation: the student answers each training row anew, before it is trained on that answer."""
    beta: Annotated[float, Bound(0, 100, above=True)] = 0.1
    """DPO: how firmly the adapter is held to what lies underneath it."""
    learning_rate: Annotated[float, Bound(0, 1, above=True)] = 2e-4
    lr_scheduler: Annotated[str, OneOf(("linear", "cosine", "constant"))] = "linear"
    warmup_ratio: Annotated[float, Bound(0, 1)] = 0.06
    warmup_steps: Annotated[int | None, Bound(0, limit="max_steps")] = None
    """Steps over which the learning rate rises, in place of ``warmup_ratio``; None: as that says."""
    beta1: Annotated[float, Bound(0, 1, below=True)] = 0.9
    beta2: Annotated[float, Bound(0, 1, below=True)] = 0.99
    weight_decay: Annotated[float, Bound(0, 10)] = 0.0
    max_grad_norm: Annotated[float, Bound(0, 1e6, above=True)] = 1.0
    epochs: Annotated[float, Bound(0, limit="max_epochs", above=True)] = 3.0
    max_steps: Annotated[int | None, Bound(1, limit="max_steps")] = None
    batch_size: Annotated[int, Bound(1, limit="max_batch_size")] = 8
    """Rows per optimiser step."""
    max_length: Annotated[int | None, Bound(2, limit="max_context", note="the model's context")] = None
    """Longest row in tokens; None: the model's context. Longer rows are refused, not cut."""
    seed: Annotated[int, Bound(0, SEED.high)] = 0
    validation_split: Annotated[float, Bound(0, 1, below=True)] = 0.0
    """Share of the rows that is held out for evaluation when no held-out data are given."""
    eval_steps: Annotated[int | None, Bound(1, limit="max_steps")] = None
    """Steps between two evaluations; None: at the end only, or once an epoch when stopping early is asked for."""
    early_stopping_patience: Annotated[int | None, Bound(1, limit="max_steps")] = None
    """Evaluations without a better loss after which a run stops; None: it goes on to its end."""
    replay: str = ""
    """Id of the dataset of general rows that are mixed in; empty: none."""
    replay_rows: Annotated[int, Bound(0, MAX_REPLAY_ROWS)] = 0
    """Rows drawn from ``replay``, once a job by its seed."""
    chat_template_kwargs: str = ""
    """Arguments of the chat template for every row that does not say otherwise: a JSON object as text; empty: none."""


BOUNDS: dict[str, Bound | OneOf] = {
    name: hint.__metadata__[0]
    for name, hint in get_type_hints(TrainSpec, include_extras=True).items()
    if get_origin(hint) is Annotated
}
"""Bounds of the settings by name."""

IMPROVES, MIN_ACCURACY = "improves", "min_accuracy"
CONTAINED, EXACT = "contained", "exact"


@dataclass(frozen=True, slots=True)
class Gate:
    """A condition for promoting a version."""

    kind: str = ""
    """``improves`` or ``min_accuracy``; empty: none. A caller may also ask for ``none``."""
    min_accuracy: float = 0.0
    match: str = ""
    """With ``min_accuracy``: ``contained`` (the default) or ``exact``."""

    def __str__(self) -> str:
        if self.kind != MIN_ACCURACY:
            return self.kind
        exact = f":{EXACT}" if self.match == EXACT else ""
        return f"{self.kind}:{self.min_accuracy!r}{exact}"

    def __bool__(self) -> bool:
        return bool(self.kind)

    def settled(self, held_out: bool) -> Gate:
        """The gate that was asked for; ``improves`` where none was and there are held-out rows to measure."""
        kind = self.kind or (IMPROVES if held_out else "none")
        if kind == MIN_ACCURACY:
            return Gate(kind, self.min_accuracy, self.match or CONTAINED)
        return Gate() if kind == "none" else Gate(kind)


@dataclass(frozen=True, slots=True)
class JobRequest:
    """What a job is asked with. The database keeps it as one JSON document: a new field needs a default, no migration.

    A door hands it over unchecked; in a stored one every reference names a version, and nothing is left open.
    """

    name: str
    """Name of the adapter; the result becomes its next version."""
    dataset_id: str
    tenant: str
    spec: TrainSpec = field(default_factory=TrainSpec)
    validation_dataset_id: str = ""
    on_top_of: tuple[tuple[StackItem, ...], ...] = ()
    """Frozen stacks underneath, rows taking turns over them; an empty inner tuple is the base."""
    init_from: str = ""
    gate: Gate = Gate()
    compare_prompt: str = ""
    compare_documents: str = ""
    """Id of the dataset of documents that passages are found in; empty: no comparison with retrieval."""
    compare_top_k: int = TOP_K
    """Passages that are put before each held-out row."""
    metadata: dict[str, str] = field(default_factory=dict)
    idempotency_key: str = ""
    recipe: str = field(default="", compare=False)
    """Named settings for what the caller did not give; empty: none."""
    given: frozenset[str] | None = field(default=None, compare=False)
    """Names of the settings in ``spec`` that the caller chose; None: all. The others are the server's to choose."""
    trace: TraceContext | None = field(default=None, compare=False)
    """Of the call that asks, where that is traced."""

    def gave(self, setting: str) -> bool:
        """Whether the caller chose a setting."""
        return self.given is None or setting in self.given


@dataclass(frozen=True, slots=True)
class TrainRow:
    """One tokenised row. ``labels[i]`` says whether token i is learned (predicted from those before it)."""

    input_ids: tuple[int, ...]
    labels: tuple[bool, ...]
    stack: int | None = None
    """Index of the row's own frozen stack; None: the rows take turns."""
    rejected: TrainRow | None = None
    """The answer that is preferred less, with the same prompt; None: the row is learned as it is."""
    teacher: TrainRow | None = None
    """Distillation: the same answers as the teacher reads them, with the context before them."""


@dataclass(frozen=True, slots=True)
class Stored:
    """The last steps that the stored events of a job tell of; 0: none."""

    step: int = 0
    evaluation: int = 0


@dataclass(frozen=True, slots=True)
class RowsFile:
    """Names the file with a job's rows: ``path`` below the folder of all jobs' folders, wherever the reader has it.

    An absolute ``path`` is below another server's, which shares a disk with the reader.
    """

    path: str
    sha256: str


@dataclass(frozen=True, slots=True)
class TrainCommand:
    """All that the engine needs to run a job: no names to look up, no files but the rows."""

    job_id: str
    spec: TrainSpec
    rows: RowsFile
    stacks: tuple[Stack, ...] = (BASE,)
    """Frozen stacks underneath: the job's own, then others that rows name. ``(BASE,)``: on the bare base."""
    own_stacks: int = 1
    """How many of ``stacks`` are the job's own: rows that name no stack take turns over these."""
    row_stacks: tuple[int, ...] = ()
    """For each stack that the rows file names its index into ``stacks``."""
    output: str = ""
    """Folder that the engine makes and fills with the adapter in PEFT's format."""
    base_name: str = ""
    """What ``base_model_name_or_path`` in the written adapter_config.json says."""
    end_ids: tuple[int, ...] = ()
    """Tokens that end an answer."""
    init: AdapterVersion | None = None
    """Version whose values the new adapter starts from; None: fresh ones."""
    current: AdapterVersion | None = None
    """Version that the new one would replace: measured beside it on the validation rows."""
    checkpoint_dir: str = ""
    """Folder that the front made for this job's checkpoints and keeps between attempts; empty: none are written."""
    checkpoint_every: int = 0
    """Optimiser steps between two checkpoints; 0: by time only."""
    checkpoint_seconds: float = 30.0
    """Longest time between two checkpoints."""
    stored: Stored | None = None
    """What of the run is among the job's events already: that is not reported again, and what a checkpoint covers
    beyond it is. None: every step is reported as it is done."""


class TrainEventType(StrEnum):
    """Kinds of events a job reports."""

    STATE = "state"
    STEP = "step"
    EVALUATION = "evaluation"
    MESSAGE = "message"
    CHECKPOINT = "checkpoint"
    CHECKPOINT_LOST = "checkpoint_lost"
    """A checkpoint is damaged and was passed over; the run goes on from ``step``."""


@dataclass(frozen=True, slots=True)
class JudgedAnswer:
    """What was answered to a held-out question, and whether it counts."""

    text: str
    right: bool


@dataclass(frozen=True, slots=True)
class JudgedRow:
    """A held-out question, the texts that are expected, and the answers: of ``base``, ``prompt``, ``adapter``, ..."""

    question: str
    expected: tuple[str, ...]
    answers: dict[str, JudgedAnswer]
    passages: tuple[str, ...] = ()
    """What was found for it in the documents that are compared."""


@dataclass(frozen=True, slots=True)
class TrainEvent:
    """One thing that happened in a job. ``metrics`` holds numbers: step, loss, learning_rate, grad_norm, ..."""

    type: TrainEventType
    message: str = ""
    state: JobState | None = None
    step: int = 0
    total_steps: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    answers: tuple[JudgedRow, ...] = ()
    """Examples of what held-out rows were answered, with an evaluation that asked them."""
