"""What the client answers: plain frozen values. Times are in seconds since 1970, 0 where there is none."""

from __future__ import annotations

import builtins
from dataclasses import dataclass, field

from .comparison import Comparison, judged, read_comparison

FINAL_STATES = frozenset({"succeeded", "failed", "cancelled"})
"""States in which a job has ended."""

SETTLED_STATES = FINAL_STATES - {"failed"}
"""States in which a job stays for good; a failed one may be resumed."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one request over all its choices."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class AppliedAdapter:
    """An adapter version that answered, and its weight."""

    name: str
    version: int
    digest: str
    weight: float

    @property
    def ref(self) -> str:
        """``name@version``."""
        return f"{self.name}@{self.version}"


@dataclass(frozen=True, slots=True)
class TopLogprob:
    """A token, its natural-log probability and its text; ``bytes`` as in :class:`TokenLogprob`."""

    token_id: int
    logprob: float
    token: str = ""
    bytes: builtins.bytes = b""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A chosen token, its natural-log probability, its text, and the best alternatives, best first.

    ``token`` shows U+FFFD where a token is only part of a character. ``bytes`` is what it adds to the UTF-8 of the
    answer's text (nothing for a special token): joined over an answer they are its text, if no stop text cut it.
    """

    token_id: int
    logprob: float
    token: str = ""
    top: tuple[TopLogprob, ...] = ()
    bytes: builtins.bytes = b""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of an answer.

    The last chunk of each choice has a ``finish_reason`` (``stop``, ``length``, ``cancelled``, ``error``), the last
    of all has ``usage``; the first and the last of all name the ``adapters``.
    """

    index: int = 0
    text: str = ""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: str | None = None
    usage: Usage | None = None
    adapters: tuple[AppliedAdapter, ...] = ()
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class Choice:
    """One whole answer."""

    index: int
    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: str | None = None


@dataclass(frozen=True, slots=True)
class Completion:
    """All answers to a request. ``text``, ``finish_reason``, ``token_ids`` and ``logprobs`` are the first one's."""

    choices: tuple[Choice, ...]
    usage: Usage = Usage()
    adapters: tuple[AppliedAdapter, ...] = ()
    request_id: str = ""

    @property
    def text(self) -> str:
        return self.choices[0].text

    @property
    def finish_reason(self) -> str | None:
        return self.choices[0].finish_reason

    @property
    def token_ids(self) -> tuple[int, ...]:
        return self.choices[0].token_ids

    @property
    def logprobs(self) -> tuple[TokenLogprob, ...]:
        return self.choices[0].logprobs


@dataclass(frozen=True, slots=True)
class Score:
    """One entry per token of the continuation: id, text, natural-log probability, whether it was the likeliest."""

    token_ids: tuple[int, ...]
    tokens: tuple[str, ...]
    logprobs: tuple[float, ...]
    greedy: tuple[bool, ...]
    usage: Usage = Usage()
    adapters: tuple[AppliedAdapter, ...] = ()
    bytes: tuple[builtins.bytes, ...] = ()
    """UTF-8 of each token; joined they are the continuation."""

    @property
    def total(self) -> float:
        """Natural-log probability of the whole continuation."""
        return sum(self.logprobs)


@dataclass(frozen=True, slots=True)
class Tokens:
    """Token ids, the vocabulary's spelling of each, and the text that was tokenised."""

    token_ids: tuple[int, ...]
    tokens: tuple[str, ...]
    text: str
    bytes: tuple[builtins.bytes, ...] = ()
    """The bytes that each token stands for."""

    def __len__(self) -> int:
        return len(self.token_ids)


@dataclass(frozen=True, slots=True)
class StackItem:
    """An adapter reference (``name``, ``name@version``) and the weight of its delta."""

    adapter: str
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Composition:
    """How a version was merged: the stack with its versions, the method, and the settings that the method takes."""

    method: str
    """``cat``, ``svd``, ``linear``, ``ties``, ``dare_ties`` or ``magnitude_prune``."""
    stack: tuple[StackItem, ...]
    error: float
    """Frobenius norm of what the merged delta misses of the stack's sum, relative to that sum; 0 is exact."""
    rank: int | None = None
    density: float | None = None
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class AdapterVersion:
    """One published version of an adapter."""

    name: str
    version: int
    digest: str
    rank: int = 0
    alpha: float = 0.0
    rslora: bool = False
    target_modules: tuple[str, ...] = ()
    layers: tuple[int, ...] = ()
    """Decoder layers that it changes; empty: all."""
    size_bytes: int = 0
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
    trained_on: tuple[tuple[StackItem, ...], ...] = ()
    asked_with: str = ""
    """``messages`` or ``prompt``: how the rows that it learned from are asked; empty: not known."""
    for_other_base: bool = False
    """Whether it was made for another base than the server has, and so cannot be used there."""
    warnings: tuple[str, ...] = ()
    """What does not keep it from being served, but may not be meant."""
    composed: Composition | None = None
    """Set when it was merged from other versions."""
    metrics: dict[str, float] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    tier: str = "disk"
    """Where its weights are: ``device``, ``host`` or ``disk``."""
    pinned: bool = False
    last_used_at: float = 0.0

    @property
    def ref(self) -> str:
        """``name@version``."""
        return f"{self.name}@{self.version}"

    @property
    def comparison(self) -> Comparison | None:
        """How it did against a prompt on the held-out rows; None if that was not measured."""
        return read_comparison(self.metrics)


@dataclass(frozen=True, slots=True)
class Adapter:
    """A name and the versions behind it."""

    name: str
    tenant: str = ""
    current: AdapterVersion | None = None
    """The version that the plain name means; None: none is usable."""
    versions: tuple[AdapterVersion, ...] = ()
    """Newest first; empty in lists."""
    aliases: dict[str, int] = field(default_factory=dict)
    previous_version: int = 0
    """The version that the plain name meant before it moved, to roll back to; 0: none."""
    created_at: float = 0.0
    updated_at: float = 0.0


@dataclass(frozen=True, slots=True)
class Dataset:
    """A stored dataset."""

    id: str
    name: str = ""
    digest: str = ""
    size_bytes: int = 0
    rows: int = 0
    created_at: float = 0.0


@dataclass(frozen=True, slots=True)
class DatasetProblem:
    """What is wrong with one line (counted from 1; 0: the whole file)."""

    line: int
    field: str
    description: str
    in_list: bool = False
    """Whether ``line`` is the number of a row in a JSON list whose rows share lines."""

    def __str__(self) -> str:
        place = f"{'row' if self.in_list else 'line'} {self.line}" if self.line else "dataset"
        return f"{place}, {self.field}: {self.description}" if self.field else f"{place}: {self.description}"


@dataclass(frozen=True, slots=True)
class DatasetNote:
    """What does not keep anyone from training, but may not be meant."""

    code: str
    """Stable word for programs, such as ``REPEATED_ROWS``."""
    text: str
    count: int = 0
    """Rows that it is about; 0: the dataset as a whole."""
    line: int = 0
    """The first of them; 0: none in particular."""

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class MarkedText:
    """Text of a tokenised row that is all learned or all not, special tokens shown."""

    text: str
    trained: bool


@dataclass(frozen=True, slots=True)
class MarkedRow:
    """A row as it is trained on, in parts; ``rejected`` is the other answer of a pair, after the same prompt."""

    line: int
    text: tuple[MarkedText, ...]
    rejected: tuple[MarkedText, ...] = ()
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class DatasetReport:
    """What a check of a dataset found. Counts are of the good rows; estimates are None where they cannot be told."""

    valid: bool
    problems: tuple[DatasetProblem, ...] = ()
    problems_total: int = 0
    rows: int = 0
    tokens: int = 0
    trained_tokens: int = 0
    longest_tokens: int = 0
    duplicates: int = 0
    estimated_steps: int = 0
    estimated_seconds: float | None = None
    estimated_memory_bytes: int | None = None
    estimated_from: str = ""
    """What the seconds were worked out from."""
    too_long: int = 0
    pairs: bool = False
    """Whether the rows are preference pairs."""
    warnings: tuple[str, ...] = ()
    """The texts of ``notes``."""
    notes: tuple[DatasetNote, ...] = ()
    shown: tuple[MarkedRow, ...] = ()
    """Rows as they are trained on, where some were asked for."""


@dataclass(frozen=True, slots=True)
class JudgedAnswer:
    """What was answered to a held-out question (cut where it is long), and whether it counts."""

    text: str
    right: bool


@dataclass(frozen=True, slots=True)
class JudgedRow:
    """A held-out question, the texts that are expected, and the answers.

    ``answers`` has those of ``base``, ``prompt`` (the base with the prompt that is compared), ``init`` (the version
    that the job goes on from) and ``adapter``, as far as they were asked.
    """

    question: str
    expected: tuple[str, ...]
    answers: dict[str, JudgedAnswer]


@dataclass(frozen=True, slots=True)
class JobInfo:
    """A training job as it stood when it was asked for."""

    id: str
    name: str
    state: str
    """validating_files, queued, running, paused, evaluating, publishing, succeeded, failed or cancelled."""
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
        """How base, base with the prompt, and adapter did on the held-out rows; None without ``compare_prompt``."""
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


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """What a server is and has. Base and tokenizer fields are empty until the base is loaded."""

    version: str
    state: str
    """starting, loading, warming, ready, draining or failed."""
    base_name: str = ""
    base_fingerprint: str = ""
    architecture: str = ""
    max_context: int = 0
    num_layers: int = 0
    vocab_size: int = 0
    eos_token_ids: tuple[int, ...] = ()
    has_chat_template: bool = False
    device: str = ""
    dtype: str = ""
    memory_bytes: dict[str, int] = field(default_factory=dict)
    """By kind: base, adapters, kv_cache, training, free, total."""
    adapters_total: int = 0
    adapters_resident: dict[str, int] = field(default_factory=dict)
    requests_running: int = 0
    requests_waiting: int = 0
    kv_pages_used: int = 0
    kv_pages_total: int = 0
    jobs: dict[str, int] = field(default_factory=dict)
    limits: dict[str, int] = field(default_factory=dict)
    uptime_seconds: float = 0.0
