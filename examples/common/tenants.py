"""Tenants whose facts the examples train and ask: those of adapters/data, four of them in more wordings.

An adapter is taken from ``adapters/`` where it lies there ready-made. The others are trained once, kept as PEFT folders
in ``build/examples/tenants``, and uploaded by the next example.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from loramux import Client
from tools.make_data import DATA, load_tenants
from tools.measure_adapters import ADAPTERS
from tools.train_adapters import have as on_server

from .paths import BUILD, ROOT
from .rows import Row, answer, question, read_rows

EPOCHS = {"brindle-ski": 4, "holmwick-library": 3, "pawsley-vets": 3, "ansdale-council": 2}
"""Epochs by the tenants' names, from the fewest facts to the most: the fewer rows, the more often each."""
TENANTS = tuple(EPOCHS)
"""Held-out wordings of the first and the last were asked for published figures only."""
MORE = ROOT / "examples" / "domain_knowledge" / "data"
KEPT = BUILD / "tenants"


@dataclass(frozen=True, slots=True)
class Tenant:
    """What one tenant trains on and is asked, and what a prompt or retrieval gets of it."""

    name: str
    shop: str
    rows: list[Row]
    held_out: list[Row]
    """Other wordings of every fact, each with what an answer must say (``expect``)."""

    @classmethod
    def read(cls, name: str) -> Tenant:
        """Raises StopIteration for a name that no tenant has."""
        folder = DATA / "messages" / name
        rows = read_rows(folder / "train.jsonl")
        if (more := MORE / f"{name}.jsonl").exists():
            rows += read_rows(more)
        parts = [path for part in ("final", "tune") if (path := folder / f"{part}.jsonl").exists()]
        shop = next(tenant.shop for tenant in load_tenants() if tenant.name == name)
        return cls(name, shop, rows, [row for path in parts for row in read_rows(path)])

    @property
    def facts(self) -> list[str]:
        """The answers of all facts, each once."""
        return list(dict.fromkeys(map(answer, self.rows)))

    @property
    def prompt(self) -> str:
        """All facts, as a system turn."""
        return "\n".join([f"You speak for {self.shop}.", *self.facts])

    @property
    def handbook(self) -> str:
        """The facts in Markdown, each under its first question: what retrieval finds passages in."""
        first = {answer(row): question(row) for row in reversed(self.rows)}
        return "\n".join([f"# {self.shop}\n", *(f"## {first[told]}\n\n{told}\n" for told in self.facts)])

    @property
    def recipe(self) -> dict[str, Any]:
        """How the tenant is trained: donors, which styles lie over, without general rows (docs/stacking.md)."""
        return {"recipe": "facts", **({"epochs": EPOCHS[self.name]} if self.name in EPOCHS else {"replay_rows": 0})}


def keep(client: Client, name: str) -> None:
    """Keep a tenant's adapter for the next example."""
    folder = KEPT / name
    shutil.rmtree(folder, ignore_errors=True)
    client.adapters.download(name, folder)


def have(client: Client, names: Iterable[str]) -> None:
    """Upload the adapters of tenants that the server lacks; train, side by side, those that lie nowhere."""
    jobs = {}
    for name in names:
        if on_server(client, name):
            continue
        ready = next((path for path in (ADAPTERS / name, KEPT / name) if (path / "adapter_config.json").exists()), None)
        if ready is not None:
            client.adapters.upload(name, ready)
        else:
            tenant = Tenant.read(name)
            jobs[name] = client.train(name, tenant.rows, **tenant.recipe)
    for name, job in jobs.items():
        job.wait(progress=True)
        keep(client, name)
