"""What a server is and has."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """What a server is and has. Base and tokenizer fields are empty until the base is loaded."""

    version: str
    state: str
    """starting, loading, warming, ready, draining or failed."""
    base_name: str = ""
    base_fingerprint: str = ""
    base_revision: str = ""
    """Commit of the hub's repository that the base is from; empty: from elsewhere."""
    architecture: str = ""
    max_context: int = 0
    num_layers: int = 0
    weight_bytes: int = 0
    """Of the base's weights as they are stored: linear layers in NF4, the rest in 16 bits."""
    weight_bytes_16bit: int = 0
    """Of the same weights without quantisation."""
    weights: str = ""
    """How memory holds linear layers: ``packed`` in NF4, ``unpacked`` in ``dtype``."""
    vocab_size: int = 0
    eos_token_ids: tuple[int, ...] = ()
    has_chat_template: bool = False
    device: str = ""
    dtype: str = ""
    memory_bytes: dict[str, int] = field(default_factory=dict)
    """By kind: base, adapters, kv_cache, training, free, total.

    This, ``adapters_resident``, ``requests_*`` and ``kv_pages_*`` are empty for a key without the scope ``admin``."""
    adapters_total: int = 0
    adapters_resident: dict[str, int] = field(default_factory=dict)
    requests_running: int = 0
    requests_waiting: int = 0
    kv_pages_used: int = 0
    kv_pages_total: int = 0
    jobs: dict[str, int] = field(default_factory=dict)
    limits: dict[str, int] = field(default_factory=dict)
    uptime_seconds: float = 0.0
    tenant: str = ""
    """Whose adapters, datasets and jobs the client sees."""
    key_id: str = ""
    """Of the client's key, or ``oidc:`` and the subject of its token; empty: it showed none."""
    scopes: tuple[str, ...] = ()
    allowed_adapters: tuple[str, ...] = ()
    """Those that the key is limited to; empty: it is not limited."""
    training_job_bytes: int = 0
    """Memory of a training job with the default rank on all linear layers, beside its activations: weights, gradients
    and optimizer state."""


@dataclass(frozen=True, slots=True)
class Latency:
    """How long something took, in seconds. ``count`` 0: the others say nothing."""

    count: int = 0
    p50_seconds: float = 0.0
    p90_seconds: float = 0.0
    p99_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class TenantActivity:
    """What was done for one tenant, or for all where ``tenant`` is empty. Rates are means over the window."""

    tenant: str = ""
    requests_running: int = 0
    """Generations, scores and embeddings that are being answered, those that wait included."""
    requests_per_second: float = 0.0
    prompt_tokens_per_second: float = 0.0
    generated_tokens_per_second: float = 0.0
    time_to_first_token: Latency = Latency()
    inter_token_latency: Latency = Latency()


@dataclass(frozen=True, slots=True)
class AdapterActivity:
    """What was done lately with an adapter version that is resident or was used. Rates are means over the window.

    The tokens of a stack count for each of its adapters.
    """

    adapter: str
    """``name@version``; empty: it was deleted."""
    tenant: str = ""
    """Who owns it; empty: it is shared."""
    digest: str = ""
    other_versions: int = 0
    """Versions of the same content, which share its place and its figures."""
    tier: str | None = None
    """device, host or disk; None: not told."""
    pinned: bool = False
    rank: int = 0
    size_bytes: int = 0
    requests_running: int = 0
    requests_per_second: float = 0.0
    prompt_tokens_per_second: float = 0.0
    generated_tokens_per_second: float = 0.0


@dataclass(frozen=True, slots=True)
class JobActivity:
    """How far a training job is that has not ended."""

    job_id: str
    name: str
    """Of the adapter that it trains."""
    tenant: str = ""
    state: str = ""
    """queued, running, paused, evaluating or publishing."""
    step: int = 0
    total_steps: int = 0
    loss: float | None = None
    eta_seconds: float | None = None
    losses: tuple[float, ...] = ()
    """Since the server started, oldest first, at most 64 means of stretches of equal length."""
    tokens_per_second: float = 0.0


@dataclass(frozen=True, slots=True)
class Replica:
    """One engine with its base, behind a server."""

    id: str
    state: str
    """ready, restarting, draining or failed."""
    node: str = ""
    """Name of the host that it runs on."""
    requests_running: int = 0
    requests_waiting: int = 0
    queued_tokens: int = 0
    """Tokens of prompts and of the longest answers that its requests may still take."""
    adapters: int = 0
    """Adapter versions that it holds in memory."""
    training_jobs: tuple[str, ...] = ()
    """Identifiers of the jobs that it trains."""


@dataclass(frozen=True, slots=True)
class Profile:
    """A profile of the engine that was written to a file."""

    path: str
    size: int
    """Bytes of the file."""
    events: int
    events_dropped: int = 0
    """Events that are not in it, since there were more than the server's limit."""


@dataclass(frozen=True, slots=True)
class ServerStats:
    """What a server did in the last seconds.

    A key without the scope ``admin`` is told of its tenant alone: ``own``, and the ``adapters`` and ``jobs`` of it.
    """

    window_seconds: int
    """Seconds that rates and latencies are of."""
    own: TenantActivity = TenantActivity()
    """For the client's tenant."""
    total: TenantActivity | None = None
    tenants: tuple[TenantActivity, ...] = ()
    """Those that had something, the busiest first, at most 100."""
    requests_running: int = 0
    """Generations in the batch, each choice by itself."""
    requests_waiting: int = 0
    kv_pages_used: int = 0
    kv_pages_total: int = 0
    memory_bytes: dict[str, int] = field(default_factory=dict)
    """By kind: base, adapters, kv_cache, training, free, total."""
    adapters_resident: dict[str, int] = field(default_factory=dict)
    """Adapter versions by tier: device, host."""
    adapter_bytes: dict[str, int] = field(default_factory=dict)
    """Bytes of these, by tier."""
    training_jobs: int = 0
    """Jobs that train now."""
    adapters: tuple[AdapterActivity, ...] = ()
    """Those that are resident or were used, the busiest first, at most 100."""
    jobs: tuple[JobActivity, ...] = ()
    """Those that have not ended, those at work first, at most 50."""
    jobs_by_state: dict[str, int] = field(default_factory=dict)
    """How many have not ended, by state."""
