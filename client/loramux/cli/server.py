"""``loramux info``, once or every second, and ``loramux health``."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from typing import Annotated

import typer

from ..errors import LoramuxError
from ..progress import clock
from ..types import Latency, ServerInfo, ServerStats
from .common import Json, connect, json_text, print_fields, print_json, print_result, size

HEADER_EVERY = 20
"""Lines after which ``info --live`` repeats what its columns are."""


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(info)
    app.command()(health)


def info(
    context: typer.Context,
    json: Json = False,
    live: Annotated[
        bool, typer.Option("--live", help="Show a line each second: tokens, requests and latencies; Ctrl-C ends it.")
    ] = False,
) -> None:
    """Show the server: base, device, memory, adapters, jobs, limits."""
    with connect(context) as client:
        if live:
            for number in itertools.count():
                stats = client.stats(timeout=30)
                lines = [json_text(stats)] if json else stats_lines(stats, header=number % HEADER_EVERY == 0)
                print(*lines, sep="\n", flush=True)
                time.sleep(1)
        found, address = client.info(timeout=30), client.address
    if json:
        print_json(found)
        return
    pages = f"{found.kv_pages_used}/{found.kv_pages_total} pages" if found.kv_pages_total else ""
    requests = f"{found.requests_running} running, {found.requests_waiting} waiting" if found.memory_bytes else ""
    print_fields(
        [
            ("address", address),
            ("loramux", f"{found.version}, {found.state} for {clock(found.uptime_seconds)}"),
            ("tenant", found.tenant),
            ("key", found.key_id),
            ("scopes", ", ".join(found.scopes)),
            ("allowed", ", ".join(found.allowed_adapters)),
            ("base", f"{found.base_name} ({found.architecture})" if found.architecture else found.base_name),
            ("revision", found.base_revision),
            ("fingerprint", found.base_fingerprint),
            ("weights", _saving(found)),
            ("device", ", ".join(part for part in (found.device, found.dtype) if part)),
            ("context", f"{found.max_context} tokens" if found.max_context else ""),
            ("layers", found.num_layers or ""),
            ("vocabulary", f"{found.vocab_size} tokens" if found.vocab_size else ""),
            ("chat template", "" if not found.vocab_size else "yes" if found.has_chat_template else "no"),
            ("memory", ", ".join(f"{kind} {size(count)}" for kind, count in found.memory_bytes.items())),
            ("kv cache", pages),
            ("requests", requests),
            ("adapters", found.adapters_total),
            ("resident", ", ".join(f"{count} on {tier}" for tier, count in found.adapters_resident.items())),
            ("jobs", ", ".join(f"{count} {state}" for state, count in found.jobs.items())),
            ("a job takes", f"{size(found.training_job_bytes)} and activations" if found.training_job_bytes else ""),
            ("limits", ", ".join(f"{name} {value}" for name, value in found.limits.items())),
        ]
    )


def _saving(found: ServerInfo) -> str:
    """What NF4 saves of the memory that the base's weights take in 16 bits."""
    if not found.weight_bytes_16bit:
        return ""
    saved = 1 - found.weight_bytes / found.weight_bytes_16bit
    text = f"{size(found.weight_bytes)} in NF4, {size(found.weight_bytes_16bit)} in 16 bits: {saved:.0%} saved"
    return f"{text}; held unpacked in {found.dtype}" if found.weights == "unpacked" else text


def stats_lines(stats: ServerStats, header: bool) -> Iterator[str]:
    """What was done lately in one line: of all tenants where the key may know that, else of its own."""
    shown = stats.total or stats.own
    waiting = str(stats.requests_waiting) if stats.total else "-"
    columns = (
        ("tokens/s", f"{shown.generated_tokens_per_second:.1f}"),
        ("prompt/s", f"{shown.prompt_tokens_per_second:.1f}"),
        ("running", str(shown.requests_running)),
        ("waiting", waiting),
        ("first p50/p99", _latency(shown.time_to_first_token)),
        ("token p50/p99", _latency(shown.inter_token_latency)),
    )
    for row in (0, 1) if header else (1,):
        yield "  ".join(column[row].rjust(max(len(column[0]), 8)) for column in columns)


def _latency(latency: Latency) -> str:
    return f"{latency.p50_seconds * 1000:.0f}/{latency.p99_seconds * 1000:.0f} ms" if latency.count else "-"


def health(
    context: typer.Context,
    service: Annotated[str, typer.Option(help="Service to ask about, such as loramux.v1.InferenceService.")] = "",
    liveness: Annotated[
        bool, typer.Option("--liveness", help="Ask only whether the process lives, also while it starts or stops.")
    ] = False,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for an answer.")] = 3.0,
    json: Json = False,
) -> None:
    """Say whether the server takes requests.

    The exit code is 0 if so, 1 if not. Made for health checks of containers.
    """
    with connect(context) as client:
        try:
            status, why = client.health("liveness" if liveness else service, timeout=timeout), ""
        except LoramuxError as error:
            status, why = "UNREACHABLE", error.message
    print_result({"status": status, "message": why}, f"{status}: {why}" if why else status, json)
    raise typer.Exit(0 if status == "SERVING" else 1)
