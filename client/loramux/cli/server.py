"""``loramux info`` and ``loramux health``."""

from __future__ import annotations

from typing import Annotated

import typer

from ..errors import LoramuxError
from ..progress import clock
from .common import Json, connect, print_fields, print_json, print_result, size


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(info)
    app.command()(health)


def info(context: typer.Context, json: Json = False) -> None:
    """Show the server: base, device, memory, adapters, jobs, limits."""
    with connect(context) as client:
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
            ("limits", ", ".join(f"{name} {value}" for name, value in found.limits.items())),
        ]
    )


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
