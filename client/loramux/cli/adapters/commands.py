"""``loramux adapters``."""

from __future__ import annotations

import functools
import sys
import warnings
from pathlib import Path
from typing import Annotated

import typer

from ...client import Client
from ...errors import invalid
from ...types import Adapter, AdapterVersion, Composition
from ..common import (
    AdapterOption,
    Json,
    connect,
    entries,
    how_to_ask,
    moment,
    numbers,
    pairs,
    plain,
    print_fields,
    print_json,
    print_result,
    size,
    stack,
    when,
)
from ..completion import complete_adapter
from ..tables import print_comparison, print_table
from . import promotion, sharing
from .lineage import Fetch, lineage

app = typer.Typer(
    name="adapters", help="List, move in and out, promote, merge and remove adapters.", no_args_is_help=True
)
promotion.register(app)
sharing.register(app)

Ref = Annotated[
    str,
    typer.Argument(
        metavar="NAME[@VERSION]", help="Adapter; the current version unless given.", autocompletion=complete_adapter
    ),
]


@app.command("ls")
def list_adapters(
    context: typer.Context,
    prefix: Annotated[str, typer.Argument(help="Only names that begin with this.")] = "",
    json: Json = False,
) -> None:
    """List the adapters that you may use.

    Each with the version that its name means now.
    """
    with connect(context) as client:
        found = client.adapters.list(prefix=prefix)
    if json:
        print_json(found)
    elif not found:
        print("no adapters; make one with: loramux train NAME --data FILE, or bring one: loramux adapters upload")
    else:
        print_table(["NAME", "VERSION>", "RANK>", "SIZE>", "WHERE", "STATE", "CREATED", "LAST USED"], map(_row, found))


def _row(adapter: Adapter) -> list[object]:
    version = adapter.current
    if version is None:
        return [adapter.name, "-", "", "", "", "no usable version", when(adapter.created_at), ""]
    where = f"{version.tier}, pinned" if version.pinned else version.tier
    created, used = when(version.created_at), when(version.last_used_at)
    state = "for another base" if version.for_other_base else f"{version.state}{' (!)' if version.warnings else ''}"
    state += ", shared" if version.shared else ""
    return [adapter.name, version.version, version.rank, size(version.size_bytes), where, state, created, used]


@app.command()
def show(context: typer.Context, ref: Ref, json: Json = False) -> None:
    """Show an adapter: its versions, how each was made, its metrics."""
    with connect(context) as client:
        adapter = client.adapters.get(ref)
        current = adapter.current
        shown = adapter.versions or ((current,) if current else ())
        trees = {} if json else {v.ref: list(lineage(v, _version_of(client))) for v in shown}
    if json:
        print_json(adapter)
        return
    print_fields(
        [
            ("name", adapter.name),
            ("tenant", adapter.tenant or ("all: it is shared" if adapter.shared else "")),
            ("current", current.ref if current else "none"),
            ("before", f"{adapter.name}@{adapter.previous_version}" if adapter.previous_version else ""),
            ("aliases", ", ".join(f"{adapter.name}@{alias} = {v}" for alias, v in adapter.aliases.items())),
        ]
    )
    for version in shown:
        print(f"\n{version.ref}")
        print_fields((f"  {name}", value) for name, value in _details(version))
        print_comparison(version.comparison)
        if len(trees[version.ref]) > 1:
            print("\n  lineage")
            for line in trees[version.ref]:
                print(f"    {line}")


def _version_of(client: Client) -> Fetch:
    """Looks versions up, each once."""

    @functools.cache
    def fetch(ref: str) -> AdapterVersion:
        return client.adapters.get(ref).versions[0]

    return fetch


def _details(v: AdapterVersion) -> list[tuple[str, object]]:
    return [
        ("state", f"{v.state}: {v.state_reason}" if v.state_reason else v.state),
        *(("warning", warning) for warning in v.warnings),
        ("digest", v.digest),
        ("rank", f"{v.rank}, alpha {v.alpha:g}{', rsLoRA' if v.rslora else ''}"),
        ("modules", ", ".join(v.target_modules)),
        ("layers", ranges(v.layers)),
        ("size", size(v.size_bytes)),
        ("base", v.base_name),
        ("where", f"{v.tier}, pinned" if v.pinned else v.tier),
        ("shared", "with all tenants" if v.shared else ""),
        ("created", moment(v.created_at)),
        ("last used", moment(v.last_used_at)),
        ("job", v.job_id),
        ("not promoted", v.gate_result),
        ("data", v.dataset_digest),
        ("continues", v.parent),
        ("on top of", " | ".join(entries(stack) for stack in v.trained_on)),
        ("merged from", _composed(v.composed) if v.composed else ""),
        ("metrics", numbers(v.metrics)),
        ("metadata", ", ".join(f"{key}={value}" for key, value in v.metadata.items())),
        ("ask with", how_to_ask(v.ref, v.asked_with) if v.asked_with else ""),
    ]


def _composed(c: Composition) -> str:
    settings = {name: value for name in ("rank", "density", "seed") if (value := getattr(c, name)) is not None}
    more = "".join(f", {name} {value:g}" for name, value in settings.items())
    return f"{entries(c.stack)} by {c.method}{more}, error {c.error:.3g}"


def ranges(layers: tuple[int, ...]) -> str:
    """Layer numbers in short: ``15-29``."""
    parts: list[list[int]] = []
    for layer in sorted(layers):
        if parts and layer == parts[-1][1] + 1:
            parts[-1][1] = layer
        else:
            parts.append([layer, layer])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)


@app.command()
def upload(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Name to publish under.")],
    folder: Annotated[Path, typer.Argument(help="Folder saved by PEFT.")],
    set_current: Annotated[
        bool, typer.Option("--current/--not-current", help="Whether the name moves to the new version.")
    ] = True,
    metadata: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="Note; may be repeated.")] = None,
    json: Json = False,
) -> None:
    """Publish an adapter from a PEFT folder, wherever it was trained.

    \b
    Example:
      loramux adapters upload acme ./acme-lora
    """  # noqa: D301
    with connect(context) as client:
        version = client.adapters.upload(name, folder, set_current=set_current, metadata=pairs(metadata or ()))
    if json:
        print_json(version)
    else:
        print(f"published {version.ref}")
        for warning in version.warnings:
            print(f"warning: {plain(warning)}", file=sys.stderr)


@app.command()
def download(
    context: typer.Context,
    ref: Ref,
    folder: Annotated[Path, typer.Argument(help="Folder to write; made if it is not there.")],
    json: Json = False,
) -> None:
    """Write a version as a PEFT folder, for PEFT, vLLM and others."""
    with connect(context) as client, warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        version = client.adapters.download(ref, folder)
    for warning in told:
        print(warning.message, file=sys.stderr)
    print_result(version, f"wrote {version.ref} to {folder}", json)


@app.command("merge")
@app.command("compose", hidden=True)
def merge(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Name to publish under.")],
    adapter: AdapterOption = None,
    method: Annotated[str, typer.Option(help="cat (exact), svd, linear, ties, dare_ties or magnitude_prune.")] = "cat",
    rank: Annotated[int | None, typer.Option(help="Rank of the result, with svd.")] = None,
    density: Annotated[
        float | None, typer.Option(help="Share of values kept, with ties, dare_ties and magnitude_prune.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed, with dare_ties.")] = None,
    metadata: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="Note; may be repeated.")] = None,
    json: Json = False,
) -> None:
    """Merge a stack of adapters into one new version.

    \b
    Examples:
      loramux adapters merge acme-formal -a acme -a formal:0.5
      loramux adapters merge small -a acme -a formal:0.5 --method svd --rank 16
    """  # noqa: D301
    notes = pairs(metadata or ())
    with connect(context) as client:
        version = client.adapters.merge(
            name, stack(adapter), method=method, rank=rank, density=density, seed=seed, metadata=notes
        )
    error = version.composed.error if version.composed else 0.0
    print_result(version, f"published {version.ref}, rank {version.rank}, relative error {error:.3g}", json)


@app.command()
def rm(
    context: typer.Context,
    ref: Annotated[
        str,
        typer.Argument(
            metavar="NAME[@VERSION]",
            help="A version, or a name with all its versions.",
            autocompletion=complete_adapter,
        ),
    ],
    all_versions: Annotated[
        bool, typer.Option("--all-versions", "--yes", "-y", help="Delete all versions of a name without asking.")
    ] = False,
    json: Json = False,
) -> None:
    """Delete one version, or a name with all its versions.

    Requests that use it finish. For a name alone it asks first, or wants --all-versions where there is no terminal.
    """
    with connect(context) as client:
        if "@" not in ref and not all_versions:
            versions = len(client.adapters.get(ref).versions)
            if not sys.stdin.isatty():
                raise invalid("--all-versions", f"is needed to delete {ref} with all its versions ({versions})")
            typer.confirm(f"Delete {ref} with all its versions ({versions})?", abort=True)
        count = client.adapters.delete(ref)
    print_result({"versions_deleted": count}, f"deleted {count} version{'' if count == 1 else 's'} of {ref}", json)


@app.command()
def pin(context: typer.Context, ref: Ref, json: Json = False) -> None:
    """Keep a version in memory. Needs a key with the scope admin."""
    with connect(context) as client:
        adapter = client.adapters.pin(ref)
    print_result(adapter, f"{ref} is pinned", json)


@app.command()
def unpin(context: typer.Context, ref: Ref, json: Json = False) -> None:
    """Let a pinned version leave memory when others need it. Needs a key with the scope admin."""
    with connect(context) as client:
        adapter = client.adapters.unpin(ref)
    print_result(adapter, f"{ref} is no longer pinned", json)
