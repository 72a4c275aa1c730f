"""What the services report to telemetry, which implements this; services know no metrics library."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from ..backend import SequenceTimes
from ..call import Call
from ..jobs import JobState, TrainEvent
from ..types import FinishReason, SamplingParams, Stack
from .tracing import Arrival, Attributes, TraceContext


@dataclass(frozen=True, slots=True)
class RequestStarted:
    """A generation, score or embedding passed its checks and goes to the engine."""

    request_id: str
    method: str
    """``generate``, ``score`` or ``embed``."""
    tenant: str
    stack: Stack
    prompt_tokens: int
    call: Call | None = None
    """The call that asked for it; None: the server itself did, such as to evaluate a job."""


@dataclass(frozen=True, slots=True)
class RequestFinished:
    """The same request came to its end; every started request finishes exactly once. Times in seconds."""

    request_id: str
    method: str
    tenant: str
    stack: Stack
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    duration: float
    """From the call to the end of the answer."""
    finish_reasons: tuple[FinishReason, ...]
    """One per choice that ended by itself."""
    code: str
    """As in ``CallFinished``; ``CANCELLED`` when the caller went away."""
    reason: str = ""
    """Of a generation that failed: the reason that its caller was told."""
    preparation: float = 0.0
    """Of ``duration``: from the call until the request went to the engine, checked and tokenised."""
    time_to_first_token: float | None = None
    """From the call to the first token of any choice; None: none came, or none was asked for."""
    times: SequenceTimes | None = None
    """Of the choice (of the text, for embeddings) that ended last; None: it ended before its first token."""
    chat: bool = False
    """A generation that was asked for with messages, not with a plain prompt."""
    sampling: SamplingParams | None = None
    """Of a generation: how its tokens are chosen."""
    choices: int = 1
    call: Call | None = None
    """As in ``RequestStarted``."""


@dataclass(frozen=True, slots=True)
class CallFinished:
    """A call of a door ended, whichever way. A generation is a call too, and may hold several requests."""

    door: str
    """``grpc`` or ``http``."""
    method: str
    """Name of the method without its service, such as ``Generate``."""
    request_id: str
    """The id that the caller was told."""
    call: Call | None
    """None: it was refused before it was known who made it."""
    peer: str
    """Address of the client as its door names it; empty: unknown."""
    code: str
    """``OK`` or the name of a ``core.errors.Code``."""
    reason: str
    """Reason of the error; empty: there was none."""
    seconds: float
    of_the_server: bool = False
    """It asked for what the server is or does, as consoles do every second."""
    follows_a_job: bool = False
    """It lasts as long as a job may."""


@dataclass(frozen=True, slots=True)
class JobMoved:
    """A job came into being, or moved to another state. Moments in seconds since the epoch."""

    job_id: str
    name: str
    """The adapter whose next version it trains."""
    tenant: str
    old: JobState | None
    """None: it came into being."""
    new: JobState
    at: float
    created: float
    attempt: int = 0
    """Number of the attempt that is under way, or was the last; 0: none has begun."""
    step: int = 0
    total_steps: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    """The latest value of each number that it reported."""
    adapter: str = ""
    """``name@version`` once published."""
    error_code: str = ""
    """Reason of the error that it failed with; empty: it did not."""
    error: str = ""
    """Message of that error."""
    trace: TraceContext | None = None
    """Of the call that created it, where that was traced."""
    validation: float = 0.0
    """Of a new job: the seconds that it took to read, check and tokenise its rows."""


@dataclass(frozen=True, slots=True)
class RequestRefused:
    """What came to a door was refused before it was a call of any method: an unknown path, a page of another site."""

    door: str
    request_id: str
    path: str
    """As the client wrote it, of any length."""
    peer: str
    code: str
    """Name of a ``core.errors.Code``."""
    reason: str


class CallSink(Protocol):
    """What doors report to telemetry. Called on the event loop: it must be quick and must not raise."""

    def call_finished(self, event: CallFinished) -> None: ...

    def quota_refused(self, tenant: str, limit: str) -> None: ...

    def request_refused(self, event: RequestRefused) -> None: ...


class CallSpan(Protocol):
    """The span of a call that is being answered."""

    @property
    def context(self) -> TraceContext: ...

    def end(self, event: CallFinished, answer: Attributes) -> None: ...


class CallTracer(Protocol):
    """Makes a span of each call. Called on the event loop: it must be quick and must not raise."""

    def begin(self, arrival: Arrival, parent: TraceContext | None) -> CallSpan: ...


class CallSinks:
    """Several sinks as one: each is told everything, in their order."""

    def __init__(self, *sinks: CallSink) -> None:
        self._sinks = sinks

    def call_finished(self, event: CallFinished) -> None:
        for sink in self._sinks:
            sink.call_finished(event)

    def quota_refused(self, tenant: str, limit: str) -> None:
        for sink in self._sinks:
            sink.quota_refused(tenant, limit)

    def request_refused(self, event: RequestRefused) -> None:
        for sink in self._sinks:
            sink.request_refused(event)


class Observer(Protocol):
    """Callbacks, called on the event loop: they must be quick and must not raise."""

    def request_started(self, event: RequestStarted) -> None: ...

    def answered(self, tenant: str, stack: Stack, seconds: float) -> None:
        """The first token of any choice came, so many seconds after the call."""
        ...

    def tokens(self, tenant: str, stack: Stack, count: int, interval: float | None) -> None:
        """``count`` tokens came for one choice, ``interval`` seconds after its previous ones (None: its first)."""
        ...

    def request_finished(self, event: RequestFinished) -> None: ...

    def job_event(self, job_id: str, name: str, tenant: str, event: TrainEvent) -> None:
        """A job reported something (a step, an evaluation)."""
        ...

    def job_moved(self, event: JobMoved) -> None: ...

    def adapter_deleted(self, name: str, keeps: Collection[str]) -> None:
        """An adapter of this name was deleted; the tenants that may use one of the name still are in ``keeps``."""
        ...


class NullObserver:
    """An observer that looks away."""

    def request_started(self, event: RequestStarted) -> None: ...

    def answered(self, tenant: str, stack: Stack, seconds: float) -> None: ...

    def tokens(self, tenant: str, stack: Stack, count: int, interval: float | None) -> None: ...

    def request_finished(self, event: RequestFinished) -> None: ...

    def job_event(self, job_id: str, name: str, tenant: str, event: TrainEvent) -> None: ...

    def job_moved(self, event: JobMoved) -> None: ...

    def adapter_deleted(self, name: str, keeps: Collection[str]) -> None: ...


class Observers:
    """Several observers as one: each is told everything, in their order."""

    def __init__(self, *observers: Observer) -> None:
        self._observers = observers

    def request_started(self, event: RequestStarted) -> None:
        for observer in self._observers:
            observer.request_started(event)

    def answered(self, tenant: str, stack: Stack, seconds: float) -> None:
        for observer in self._observers:
            observer.answered(tenant, stack, seconds)

    def tokens(self, tenant: str, stack: Stack, count: int, interval: float | None) -> None:
        for observer in self._observers:
            observer.tokens(tenant, stack, count, interval)

    def request_finished(self, event: RequestFinished) -> None:
        for observer in self._observers:
            observer.request_finished(event)

    def job_event(self, job_id: str, name: str, tenant: str, event: TrainEvent) -> None:
        for observer in self._observers:
            observer.job_event(job_id, name, tenant, event)

    def job_moved(self, event: JobMoved) -> None:
        for observer in self._observers:
            observer.job_moved(event)

    def adapter_deleted(self, name: str, keeps: Collection[str]) -> None:
        for observer in self._observers:
            observer.adapter_deleted(name, keeps)
