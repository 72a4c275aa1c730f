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
