"""What the store answers: frozen values, no rows. Times are seconds since the epoch."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum

from ..core.jobs import JobRequest, JobState, JudgedRow, TrainEvent
from ..core.notes import Note
from ..core.types import StackItem
from .adapters.refs import LATEST

SHARED = ""
"""Owner of the adapters that every tenant may use."""


DAMAGED = "damaged: "
"""How the reason of a version begins that is quarantined because its files are damaged or gone."""


class VersionState(StrEnum):
    """States of an adapter version. Only READY ones answer requests; DELETED ones are never listed."""

    READY = "ready"
    QUARANTINED = "quarantined"
    DELETED = "deleted"


@dataclass(frozen=True, slots=True)
class Composition:
    """How a version was merged from others: the stack with its versions, the method, and its settings."""

    method: str
    stack: tuple[StackItem, ...]
    error: float
    """Frobenius norm of what the merged delta misses of the stack's sum, relative to that sum."""
    rank: int | None = None
    density: float | None = None
    seed: int | None = None

    @property
    def settings(self) -> dict[str, float]:
        """Those of rank, density and seed that the method takes."""
        found = {"rank": self.rank, "density": self.density, "seed": self.seed}
        return {name: value for name, value in found.items() if value is not None}


@dataclass(frozen=True, slots=True)
class AdapterMeta:
    """What a publisher says about a version. It is stored as one JSON document: a new field needs a default."""

    rank: int
    alpha: float
    base_fingerprint: str = ""
    target_modules: tuple[str, ...] = ()
    layers: tuple[int, ...] | None = None
    job_id: str = ""
    gate_result: str = ""
    """Why the gate of its job did not promote it; empty: it did, or there was none."""
    dataset_digest: str = ""
    parent: str = ""
    """``name@version`` it goes on from, if any."""
    without_effect: bool = False
    """Whether its delta is zero in every module."""
    asked_with: str = ""
    """``messages`` or ``prompt``: how the rows that it learned from are asked; empty: not known."""
    trained_on: tuple[tuple[StackItem, ...], ...] = ()
    """Frozen stacks that were underneath."""
    composed: Composition | None = None
    """Set when it was merged from other versions."""
    metrics: dict[str, float] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)

    def without_references(self) -> AdapterMeta:
        """The same for another owner, to whom names of jobs, data and adapters mean nothing, or something else."""
        return replace(self, job_id="", dataset_digest="", parent="", trained_on=(), composed=None)


@dataclass(frozen=True, slots=True)
class VersionRecord:
    """One version of an adapter."""

    name: str
    owner: str
    version: int
    digest: str
    state: VersionState
    size_bytes: int
    meta: AdapterMeta
    created: float
    current: bool = False
    """Whether the bare name means this version."""
    pinned: bool = False
    shared: bool = False
    """Whether all tenants may use it: the shared adapter of this name has its content."""
    last_used: float | None = None
    """When its owner last used it; what is shared has no such owner."""
    reason: str = ""
    """Why it is quarantined."""
    replaced: int | None = None
    """In the answer to publishing it: the version that the bare name meant before, if it meant one."""
    rslora: bool = False
    """This and what follows is not in the database: services fill it in when they show a version."""
    base_name: str = ""
    for_other_base: bool = False
    """Whether it was made for another base than the server has, and so cannot be used."""
    warnings: tuple[str, ...] = ()
    """What does not keep it from being served, but may not be meant."""
    tier: str = "disk"
    """Fastest place it is in now: ``device``, ``host`` or ``disk``."""

    @property
    def ref(self) -> str:
        """``name@version``."""
        return f"{self.name}@{self.version}"

    @property
    def damaged(self) -> bool:
        """Whether it is quarantined because its files are damaged or gone."""
        return self.state is VersionState.QUARANTINED and self.reason.startswith(DAMAGED)


@dataclass(frozen=True, slots=True)
class AdapterRecord:
    """An adapter: its versions that are not deleted, oldest first, and its aliases (``latest`` among them)."""

    name: str
    owner: str
    created: float
    versions: tuple[VersionRecord, ...]
    aliases: dict[str, int]
    previous: int = 0
    """The version that the bare name meant before, to roll back to; 0: none."""

    @property
    def shared(self) -> bool:
        """Whether all tenants may use it, or one of its versions."""
        return any(version.shared for version in self.versions)

    @property
    def current(self) -> VersionRecord | None:
        """The version that the bare name means; None when none was promoted."""
        return self.version(self.aliases.get(LATEST, 0))

    def version(self, number: int) -> VersionRecord | None:
        """The version with this number, if it is not deleted."""
        return next((v for v in self.versions if v.version == number), None)


@dataclass(frozen=True, slots=True)
class DatasetRecord:
    """A stored dataset. ``id`` is ``ds-`` and 16 digits of ``digest``, so the same bytes have the same id."""

    id: str
    owner: str
    digest: str
    filename: str
    format: str
    size_bytes: int
    created: float
    rows: int | None = None


class UploadState(StrEnum):
    """Where an upload in parts is. One that has expired is forgotten."""

    PENDING = "pending"
    COMPLETED = "completed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class UploadRecord:
    """A dataset that comes in parts."""

    id: str
    owner: str
    filename: str
    size_bytes: int
    """As it was announced."""
    state: UploadState
    created: float
    expires: float
    dataset_id: str = ""
    """What it became; empty: nothing yet."""


@dataclass(frozen=True, slots=True)
class PartRecord:
    """A part of an upload. ``id`` is ``part_`` and 32 digits of ``digest``."""

    upload_id: str
    id: str
    digest: str
    size_bytes: int
    created: float


@dataclass(frozen=True, slots=True)
class JobRecord:
    """A job as it stands. ``request`` never changes; the rest follows the events."""

    id: str
    request: JobRequest
    state: JobState
    created: float
    updated: float
    started: float | None = None
    finished: float | None = None
    attempts: int = 0
    """How often it began to run."""
    step: int = 0
    total_steps: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    """The latest value of each number that the job reported."""
    adapter: str = ""
    """``name@version`` once published."""
    error_code: str = ""
    error: str = ""
    gate_result: str = ""
    """Why the version was not promoted; empty: it was, or there is none yet."""
    fence: int = 0
    """Rises whenever the job changes hands; a runner writes only while it is the one that it was given."""
    donors: dict[str, str] = field(default_factory=dict)
    """Digests of the versions that it needs, by reference: their files stay until it is final."""
    notes: tuple[Note, ...] = ()
    """What may not be meant about its data."""
    last_sequence: int = 0
    """Number of its latest event that is written."""
    published: VersionRecord | None = None
    """The version ``adapter``, unless deleted. This and what follows is filled in by services that show a job."""
    answers: tuple[JudgedRow, ...] = ()
    """Examples of what held-out rows were answered."""
    replaced: str = ""
    """``name@version`` that the name meant when the result was published; empty: none."""


@dataclass(frozen=True, slots=True)
class EventRecord:
    """An event of a job. ``sequence`` counts from 1 within the job, without gaps."""

    job_id: str
    sequence: int
    at: float
    event: TrainEvent
