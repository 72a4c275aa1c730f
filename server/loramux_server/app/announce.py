"""What the server says to its operator: a line for each slow step, and a summary when it is ready."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ..config import Address, Settings
from ..core.backend import EngineInfo, EngineStats
from ..host.home import short
from ..host.service_manager import ServiceManager
from ..telemetry.logs import get_logger
from ..telemetry.stderr import tell

logger = get_logger(__name__)

DEFAULT_ADDRESS = "127.0.0.1:50051"
EVERY = 1.0
"""Least seconds between two lines about the same step."""


@dataclass(frozen=True, slots=True)
class Ready:
    """A server that takes calls: what it was told, where it listens and what it runs."""

    settings: Settings
    listen: Sequence[Address]
    """gRPC's address, then that of HTTP where it is on."""
    metrics_port: int | None
    engine: EngineInfo
    stats: EngineStats


class Announcer(Protocol):
    """Tells how the start goes. ``progress`` may be called from any thread; ``fraction`` is None when not known."""

    def progress(self, step: str, fraction: float | None = None) -> None: ...

    def ready(self, server: Ready) -> None: ...

    def say(self, text: str) -> None: ...


class Silent:
    """Says nothing; for servers inside other programs."""

    def progress(self, step: str, fraction: float | None = None) -> None: ...

    def ready(self, server: Ready) -> None: ...

    def say(self, text: str) -> None: ...


class Logged:
    """Says it as log events, for programs that read the log."""

    def progress(self, step: str, fraction: float | None = None) -> None:
        logger.info("starting", step=step, fraction=fraction)

    def ready(self, server: Ready) -> None:
        logger.info(
            "ready",
            listen=str(server.listen[0]),
            http=str(server.listen[1]) if len(server.listen) > 1 else "off",
            metrics_port=server.metrics_port,
            base=server.engine.base_name,
            device=server.engine.device,
            dtype=server.engine.dtype,
            memory=server.stats.memory,
            state_dir=str(server.settings.state_dir),
        )

    def say(self, text: str) -> None:
        logger.info(text)


class Reported:
    """Says it as another announcer does, and tells the service manager."""

    def __init__(self, inner: Announcer, manager: ServiceManager) -> None:
        self._inner, self._manager = inner, manager

    def progress(self, step: str, fraction: float | None = None) -> None:
        self._inner.progress(step, fraction)
        self._manager.status(f"Starting: {step}" if fraction is None else f"Starting: {step}, {fraction:.0%}")

    def ready(self, server: Ready) -> None:
        self._inner.ready(server)
        self._manager.status(f"Serving {server.engine.base_name} on {', '.join(map(str, server.listen))}")
        self._manager.ready()

    def say(self, text: str) -> None:
        self._inner.say(text)


class Plain:
    """Says it in plain lines on standard error."""

    def __init__(self, version: str, began: float | None = None) -> None:
        self._version = version
        self._started = time.monotonic() if began is None else began
        self._step = ""
        self._shown = 0.0

    def progress(self, step: str, fraction: float | None = None) -> None:
        now = time.monotonic()
        if step == self._step and now - self._shown < EVERY:
            return
        self._step, self._shown = step, now
        done = "" if fraction is None else f" {fraction:4.0%}"
        tell(f"[{now - self._started:5.1f} s] {step}{done}")

    def ready(self, server: Ready) -> None:
        for line in ready_lines(self._version, server):
            tell(line)

    def say(self, text: str) -> None:
        tell(text)


def ready_lines(version: str, server: Ready) -> list[str]:
    """Where it listens, what it runs, what to try next; within 80 columns where names allow."""
    settings, engine, stats, memory = server.settings, server.engine, server.stats, server.stats.memory
    kinds = (
        ("base", memory.get("base")),
        ("adapters", memory.get("adapters")),
        ("KV cache", stats.kv_bytes_total or memory.get("kv_cache")),
        ("free", memory.get("free")),
    )
    sizes = ", ".join(f"{kind} {human_size(size)}" for kind, size in kinds if size)
    metrics_host = settings.metrics_listen.host if settings.metrics_listen else ""
    scheme = "https" if settings.metrics_tls else "http"
    port = server.metrics_port
    metrics = f"{scheme}://{Address(metrics_host, port)}/metrics" if port is not None else "off"
    grpc, *http = server.listen
    secure = "https" if settings.tls.cert else "http"
    lines = [
        "",
        f"loramux {version} is ready.",
        f"  gRPC      {grpc}{', TLS' if settings.tls.cert else ''}",
        f"  HTTP      {f'{secure}://{http[0]}/v1' if http else 'off'}",
        *([f"  console   {secure}://{_reachable(http[0])}/"] if http and settings.console == "on" else []),
        f"  metrics   {metrics}",
        f"  base      {engine.base_name}",
        f"            {engine.architecture}, {engine.num_layers} layers, context of {engine.max_context} tokens",
        f"  runs on   {engine.device} in {engine.dtype}",
        f"  memory    {sizes}",
        f"  state     {short(settings.state_dir)}",
        "",
        "Try, in another terminal:",
    ]
    if settings.tls.cert or str(grpc) != DEFAULT_ADDRESS:
        scheme = "https://" if settings.tls.cert else ""
        lines.append(f"  export LORAMUX_ADDRESS={scheme}{_reachable(grpc)}")
    return [
        *lines,
        '  loramux generate -m "What is the capital of France?"',
        "  loramux chat",
        "  loramux train acme --data acme.jsonl",
        "",
        "Ctrl-C stops the server.",
    ]


def _reachable(listen: Address) -> Address:
    """Where a program on this machine finds what listens."""
    return Address("127.0.0.1", listen.port) if listen.host in ("0.0.0.0", "::") else listen


def human_size(size: float) -> str:
    """Bytes in the unit that reads best: ``97 MB``."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} GB" if size < 1000 else f"{size / 1000:.1f} TB"
