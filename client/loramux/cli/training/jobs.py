"""``loramux jobs``."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from ..._wire.watch import published
from ...client import Client
from ...errors import NotFound
from ...progress import progress_display
from ...types import JobInfo
from ..common import (
    Json,
    connect,
    entries,
    json_text,
    moment,
    numbers,
    print_fields,
    print_json,
    print_notes,
    print_result,
    when,
)
from ..completion import complete_job
from ..tables import print_evaluation, print_table
from .train import published as published_text

app = typer.Typer(name="jobs", help="Follow and steer training jobs.", no_args_is_help=True)

JobId = Annotated[str, typer.Argument(metavar="JOB", help="Identifier of the job.", autocompletion=complete_job)]
JobIdOrLatest = Annotated[
    str | None,
    typer.Argument(
        metavar="[JOB]", help="Identifier of the job.", show_default="the latest", autocompletion=complete_job
    ),
]


@app.command("ls")
def list_jobs(
    context: typer.Context,
    state: Annotated[list[str] | None, typer.Option(help="Only jobs in this state; may be repeated.")] = None,
    name: Annotated[str, typer.Option(help="Only jobs that train this adapter.")] = "",
    json: Json = False,
) -> None:
    """List training jobs, newest first."""
    with connect(context) as client:
        found = client.jobs.list(states=state or (), name=name)
    if json:
        print_json(found)
    elif not found:
        print("no jobs; start one with: loramux train NAME --data FILE")
    else:
        print_table(["JOB", "ADAPTER", "STATE", "STEP>", "LOSS>", "CREATED", "RESULT"], map(_row, found))


def _row(info: JobInfo) -> list[object]:
    loss = f"{info.metrics['loss']:.4g}" if "loss" in info.metrics else ""
    step = f"{info.step}/{info.total_steps}" if info.total_steps else info.step
    result = info.adapter.ref if info.adapter else info.error
    return [info.id, info.name, info.state, step, loss, when(info.created_at), result]


@app.command()
def show(context: typer.Context, job: JobIdOrLatest = None, json: Json = False) -> None:
    """Show a job, the latest unless given."""
    with connect(context) as client:
        info = client.jobs.get(job or _latest(client)).info
    if json:
        print_json(info)
        return
    print_fields(
        [
            ("job", info.id),
            ("adapter", info.name),
            ("state", info.state),
            ("error", f"{info.error_reason}: {info.error}" if info.error_reason else info.error),
            ("published", info.adapter.ref if info.adapter else ""),
            ("step", f"{info.step}/{info.total_steps or '?'}"),
            ("metrics", numbers(info.metrics)),
            ("data", info.dataset_id),
            ("held-out data", info.validation_dataset_id),
            ("on top of", " | ".join(entries(stack) for stack in info.on_top_of)),
            ("started from", info.init_from),
            ("gate", info.gate),
            ("compared with", _short(info.compare_prompt)),
            ("documents", _documents(info)),
            ("not promoted", info.gate_result),
            ("the name meant", info.replaced),
            ("settings", _settings(info.settings)),
            ("metadata", ", ".join(f"{key}={value}" for key, value in info.metadata.items())),
            ("created", moment(info.created_at)),
            ("started", moment(info.started_at)),
            ("finished", moment(info.finished_at)),
        ]
    )
    print_notes(info.notes)
    print_evaluation(info)


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 100 else text[:97] + "..."


def _documents(info: JobInfo) -> str:
    if not info.compare_documents:
        return ""
    return f"{info.compare_documents}, {info.compare_top_k} passage{'s' * (info.compare_top_k != 1)} before a row"


def _settings(settings: dict[str, object]) -> str:
    shown = {key: ",".join(map(str, value)) if isinstance(value, list) else value for key, value in settings.items()}
    return ", ".join(f"{key} {value}" for key, value in shown.items())


@app.command()
def watch(
    context: typer.Context,
    job: JobIdOrLatest = None,
    after: Annotated[int, typer.Option(help="Only events after this sequence number.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="Print each event as a line of JSON.")] = False,
) -> None:
    """Follow a job, the latest unless given, with its loss curve.

    The exit code is 1 if it published nothing.
    """
    with connect(context) as client:
        handle = client.jobs.get(job or _latest(client))
        print_notes(handle.info.notes, sys.stderr)
        with progress_display(handle.info.name, enabled=not json, chart=True) as display:
            for event in handle.events(after_sequence=after):
                display.show(event)
                if json:
                    print(json_text(event), flush=True)
        info = handle.refresh()
        version = published(info)
    if json:
        print(published_text(version, info), file=sys.stderr)
    else:
        print_evaluation(info)
        print(published_text(version, info))


@app.command()
def cancel(context: typer.Context, job: JobId, json: Json = False) -> None:
    """End a job for good; nothing is published."""
    with connect(context) as client:
        _print_state(client.jobs.get(job).cancel(), json)


@app.command()
def pause(context: typer.Context, job: JobId, json: Json = False) -> None:
    """Stop a job at its next step, to be resumed later."""
    with connect(context) as client:
        _print_state(client.jobs.get(job).pause(), json)


@app.command()
def resume(context: typer.Context, job: JobId, json: Json = False) -> None:
    """Let a paused or failed job go on from its last checkpoint."""
    with connect(context) as client:
        _print_state(client.jobs.get(job).resume(), json)


def _latest(client: Client) -> str:
    """The job that was created last."""
    found = client.jobs.list(limit=1)
    if not found:
        raise NotFound("there are no jobs yet; start one with: loramux train NAME --data FILE", reason="NO_JOBS")
    return found[0].id


def _print_state(info: JobInfo, json: bool) -> None:
    print_result(info, f"job {info.id} is {info.state}", json)
