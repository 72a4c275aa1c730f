"""Train the ready-made adapters under adapters/ with loramux itself, measure them, and write their cards.

``python -m tools.make_adapters --state-dir DIR`` trains donors, tenants and styles on a server started here (what
DIR already has is not trained again) and writes the shipped ones to adapters/. The recipe and why it is as it is:
docs/stacking.md.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from loramux import Client
from loramux_server.services.jobs.running.curve import CURVE_FILE
from tools.make_data import DATA, MEASURED, Tenant, load_tenants
from tools.measure_adapters import (
    ADAPTERS,
    Share,
    measure_generic,
    measure_tenant,
    score_stack,
    server,
    tenant_answers,
)
from tools.score import STYLES
from tools.train_adapters import train

FACTS: dict[str, Any] = {
    "rank": 16,
    "alpha": 32,
    "layers": "15-29",
    "learning_rate": 3e-3,
    "epochs": 4,
    "batch_size": 8,
    "seed": 0,
}
"""The recipe for facts on the default base but for the rows that it replays, for systems that know no recipes."""


def as_bf16(folder: Path) -> bool:
    """Store an adapter's tensors in bfloat16; whether they were not already."""
    path = folder / "adapter_model.safetensors"
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        metadata = json.loads(file.read(size)).get("__metadata__", {})
    tensors = load_file(path)
    if all(tensor.dtype == torch.bfloat16 for tensor in tensors.values()):
        return False
    save_file({name: tensor.to(torch.bfloat16) for name, tensor in tensors.items()}, path, metadata=metadata)
    return True


def ship(client: Client, name: str, figures: Mapping[str, Share], intro: str, trained: Path) -> None:
    """Write the server's ``name`` to adapters/ with its figures on the card, and its curve as it was ``trained``."""
    folder = ADAPTERS / name
    client.adapters.download(name, folder)
    shutil.copy(trained / CURVE_FILE, folder)
    card = (folder / "README.md").read_text()
    front, _, rest = card.partition("\n# ")
    title, _, body = rest.partition("\n")
    lines = "\n".join(f"| {what} | {share} |" for what, share in figures.items())
    measured = (
        f"\n# {title}\n\n{intro}\n\n## Measured\n\n| on held-out questions | |\n| --- | --- |\n{lines}\n\n"
        "Measure again: `python -m tools.measure_adapters`\n"
    )
    (folder / "README.md").write_text(front + measured + body)


def tenant_figures(client: Client, tenant: Tenant, other: Tenant) -> dict[str, Share]:
    """What a tenant's card says."""
    own = measure_tenant(client, tenant, {tenant.name: 1.0})
    last = measure_tenant(client, tenant, {tenant.name: 1.0}, ("final",))
    return {
        "fact right, base alone": measure_tenant(client, tenant, {})["fact"],
        "fact right, with this adapter": own["fact"],
        "whole answer right, with this adapter": own["answer"],
        "fact right, wordings that nobody looked at before": last["fact"],
        f"fact right, with `{other.name}` instead": measure_tenant(client, tenant, {other.name: 1.0})["fact"],
        "generic questions still answered": measure_generic(client, {tenant.name: 1.0}),
        "generic questions answered by the base": measure_generic(client, {}),
    }


def style_figures(client: Client, name: str, tenants: list[Tenant]) -> dict[str, Share]:
    """What a style's card says of ``tenants``, none of which the style ever saw."""
    style = STYLES[name]
    found: dict[str, Share] = {}
    pooled, formats, foreign = Share(0, 0), Share(0, 0), Share(0, 0)
    for tenant in tenants:
        own = {tenant.name: 1.0}
        alone = tenant_answers(client, tenant, own)
        figures = score_stack(tenant, style, tenant_answers(client, tenant, {**own, name: 1.0}), alone)
        if tenant.role == "foreign":
            found[f"kept, of those right alone, on top of the foreign `{tenant.name}`"] = figures["kept"]
            foreign += figures["kept"]
            continue
        found[f"fact and format, on top of `{tenant.name}`"] = figures["both"]
        pooled, formats = pooled + figures["both"], formats + figures["format"]
    found["fact and format, all unseen tenants"] = pooled
    found["format, all unseen tenants"] = formats
    found["kept, of those right alone, all foreign tenants"] = foreign
    found["generic questions answered in the format, alone on the base"] = measure_generic(client, {name: 1.0}, style)
    return found


def round_to_bf16(client: Client, name: str, scratch: Path) -> None:
    """Publish the bfloat16 copy of an adapter as its next version: what is measured is what is shipped."""
    folder = scratch / name
    client.adapters.download(name, folder)
    if as_bf16(folder):
        client.adapters.upload(name, folder)


def main() -> None:
    """Train what is missing, measure, write."""
    parser = argparse.ArgumentParser(description="Train, measure and write the ready-made adapters.")
    parser.add_argument("--state-dir", type=Path, required=True, help="of the server; keeps what was trained")
    parser.add_argument("--address", help="a running server (default: start one)")
    arguments = parser.parse_args()
    tenants = [t for t in load_tenants() if t.role != "small-donor"]
    unseen = sorted((t for t in tenants if t.role in MEASURED), key=lambda t: t.role == "foreign")
    shipped = [t for t in tenants if t.role == "shipped"]
    rows = DATA / "messages"
    with server(arguments.address, arguments.state_dir) as client:
        for tenant in tenants:
            replay_rows = 0 if tenant.role == "donor" else None
            train(client, tenant.name, rows / tenant.name / "train.jsonl", "facts", replay_rows)
            if tenant.role in MEASURED:
                print(tenant.name, *map(str, measure_tenant(client, tenant, {tenant.name: 1.0}).values()), flush=True)
        for name in STYLES:
            train(client, name, rows / f"style-{name}.jsonl", "style")
        scratch = arguments.state_dir / "bf16"
        for name in [*(t.name for t in shipped), *STYLES]:
            round_to_bf16(client, name, scratch)
        for tenant in shipped:
            other = next(t for t in shipped if t is not tenant)
            figures = tenant_figures(client, tenant, other)
            intro = f"Facts of {tenant.shop}, an invented shop ({tenant.topic})."
            ship(client, tenant.name, figures, intro, scratch / tenant.name)
            print(tenant.name, {k: str(v) for k, v in figures.items()}, flush=True)
        for name in STYLES:
            figures = style_figures(client, name, unseen)
            intro = f"Answers in the `{name}` format on top of any tenant's adapter, at weights 1 and 1."
            ship(client, name, figures, intro, scratch / name)
            print(name, {k: str(v) for k, v in figures.items()}, flush=True)


if __name__ == "__main__":
    main()
