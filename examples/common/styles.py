"""What a style trains over and is asked on: four tenants underneath, and one that it never met."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from loramux import Client
from tools.make_data import as_messages, load_tenants, style_rows
from tools.score import fact_kept

from .asking import ask
from .figures import Share, share
from .rows import Row, question
from .tenants import Tenant, have

DONORS = {"quillfern-bakery": 1.3, "veldt-movers": 1.3, "solmere-yoga": 1.3, "corvane-locksmith": 1.0}
"""Tenants underneath and their weights, most of them above 1: see docs/stacking.md."""
UNSEEN = ("acme-bikes",)
"""Tenants that are asked: more of them may be named, ready-made or trained like the donors."""
QUICK_DONORS = ("quillfern-bakery",)
"""Ready-made, so that a quick run trains no tenant."""
QUICK_GENERAL = 24
WORDINGS = 2
"""Held-out wordings that are asked of each fact."""


def training_rows(render: Callable[[str], str], wordings: int) -> list[Row]:
    """Facts of the donors, each in so many wordings and over its tenant's adapter, and 80 general rows over none.

    ``render`` puts an answer into the form that is to be learned.
    """
    donors = [replace(t, role="donor", weight=DONORS[t.name]) for t in load_tenants() if t.name in DONORS]
    return [{**as_messages(row), "on_top_of": row.on_top_of} for row in style_rows(render, donors, wordings=wordings)]


def train(client: Client, forms: Mapping[str, list[Row]], quick: bool, **settings: Any) -> None:
    """Train adapters from their rows, side by side, over donors; a quick run takes one donor and fewer general rows."""
    have(client, QUICK_DONORS if quick else DONORS)
    jobs = [client.train(name, _fewer(rows) if quick else rows, **settings) for name, rows in forms.items()]
    for job in jobs:
        job.wait(progress=True)


def _fewer(rows: Sequence[Row]) -> list[Row]:
    general = [row for row in rows if not row["on_top_of"]]
    return [*(row for row in rows if row["on_top_of"].keys() & set(QUICK_DONORS)), *general[:QUICK_GENERAL]]


def unseen(client: Client, quick: bool, facts: int) -> dict[str, list[Row]]:
    """Held-out questions of tenants that no form was trained over, whose adapters the server then has.

    Two wordings of each fact; a quick run takes one wording of so many ``facts``.
    """
    found = {}
    for name in UNSEEN:
        tenant = Tenant.read(name)
        rows = tenant.held_out[: WORDINGS * len(tenant.facts)]
        found[name] = rows[:facts] if quick else rows
    have(client, found)
    return found


@dataclass(frozen=True, slots=True)
class Way:
    """One way to get answers: which adapters, which system turn, which shape."""

    title: str
    tenant: bool = True
    """Whether the tenant's adapter answers; else the base does."""
    form: str = ""
    """The adapter on top of it."""
    system: str = ""
    schema: dict[str, object] | None = None

    def ask(self, client: Client, tenant: str, rows: Sequence[Row], max_tokens: int = 48) -> list[str]:
        """Answers to a tenant's questions."""
        names = [*([tenant] if self.tenant else []), *([self.form] if self.form else [])]
        shape = {"response_format": {"json_schema": self.schema}} if self.schema else {}
        return ask(
            client,
            [question(row) for row in rows],
            dict.fromkeys(names, 1.0),
            system=self.system,
            max_tokens=max_tokens,
            **shape,
        )


def told(answers: Sequence[str], rows: Sequence[Row]) -> list[bool]:
    """Which answers say what their row expects."""
    return [fact_kept(answer, row["expect"]) for answer, row in zip(answers, rows, strict=True)]


def kept(held: Sequence[bool], alone: Sequence[bool]) -> Share:
    """Of the questions that the tenant's adapter alone has right, those that still hold."""
    return share(now for now, before in zip(held, alone, strict=True) if before)
