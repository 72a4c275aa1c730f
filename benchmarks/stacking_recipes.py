"""Ways to train tenants and styles so that they stack, and the adapters that each way needs.

An adapter is named by all that decides what it becomes: its rows, its recipe, the base and its precision, and through
the names in its rows the adapters underneath. What was trained once is found again under its name.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tools.make_adapters import FACTS
from tools.make_data import (
    DONOR_WORDINGS,
    MEASURED,
    Row,
    Tenant,
    as_messages,
    generic_rows,
    own_answer_rows,
    style_rows,
    tenant_rows,
    with_replay,
)
from tools.score import STYLES

STYLE: dict[str, Any] = {
    "rank": 8,
    "alpha": 16,
    "layers": "15-29",
    "learning_rate": 2e-3,
    "epochs": 2,
    "batch_size": 8,
    "seed": 0,
}
"""The server's recipe for styles on the default base, spelled out because variants change it."""
SHAPE = ("rank", "alpha", "layers", "target_modules")
"""Settings that are those of the version that a job goes on from."""
GOING_ON = 1e-3
"""Learning rate of a style that goes on: half of the recipe's."""
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
FEED_FORWARD = ["gate_proj", "up_proj", "down_proj"]

LIKE_TENANTS = (*MEASURED, "small-donor")
EVERYBODY = (*LIKE_TENANTS, "donor")


@dataclass(frozen=True, slots=True)
class Variant:
    """How a way of training differs from the documented one."""

    name: str
    about: str
    donors: int | None = None
    """Donors under the styles; None: all that the data have."""
    donor_weight: float | None = None
    """Weight of every donor; None: as the data say."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Settings of donors and tenants that differ."""
    style: Mapping[str, Any] = field(default_factory=dict)
    """Settings of styles that differ."""
    wordings: int = DONOR_WORDINGS
    """Of each donor's fact in the styles' rows."""
    replay: Collection[str] = LIKE_TENANTS
    """Roles of those who learn generic rows too."""
    generic: int | None = 32
    """How many generic rows; None: those of ``with_replay``, which wraps half of their own rows in other words."""
    goes_on: bool = False
    """Whether styles go on over small donors, on what those say themselves."""
    styled: float = 0.0
    """Share of a tenant's rows that are learned over a style, in its format; the others are learned without one."""


VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("documented", "the recipe of docs/stacking.md"),
        Variant("own-answers", "styles go on over small donors, on what those say themselves", goes_on=True),
        Variant("donors-1", "one donor", donors=1),
        Variant("donors-4", "four donors", donors=4),
        Variant("weight-1.0", "every donor at weight 1", donor_weight=1.0),
        Variant("weight-1.3", "every donor at weight 1.3", donor_weight=1.3),
        Variant("weight-1.6", "every donor at weight 1.6", donor_weight=1.6),
        Variant("facts-only", "tenants without generic rows", replay=()),
        Variant("replay-112", "tenants with 112 generic rows", generic=112),
        Variant("replay-all", "donors with generic rows too", replay=EVERYBODY),
        Variant("replay-wrapped", "and half of their own wrapped in other words", replay=EVERYBODY, generic=None),
        Variant("styled-25", "no generic rows, a quarter of a tenant's over a style", replay=(), styled=0.25),
        Variant("styled-50", "no generic rows, half of a tenant's over a style", replay=(), styled=0.5),
        Variant(
            "style-above",
            "facts in layers 15-22, styles in 23-29",
            facts={"layers": "15-22"},
            style={"layers": "23-29"},
        ),
        Variant(
            "style-below",
            "styles in layers 15-22, facts in 23-29",
            facts={"layers": "23-29"},
            style={"layers": "15-22"},
        ),
        Variant("style-all-layers", "styles in all layers", style={"layers": None}),
        Variant("style-upper", "styles in layers 23-29", style={"layers": "23-29"}),
        Variant("style-lower", "styles in layers 15-22", style={"layers": "15-22"}),
        Variant("style-in-attention", "styles in attention only", style={"target_modules": ATTENTION}),
        Variant("style-in-feed-forward", "styles in feed-forward only", style={"target_modules": FEED_FORWARD}),
        Variant("style-slow", "styles at 1e-3 for three epochs", style={"learning_rate": 1e-3, "epochs": 3}),
        Variant("wordings-4", "four wordings of a donor's fact, styles for one epoch", wordings=4, style={"epochs": 1}),
        Variant(
            "style-attention",
            "styles in attention, facts in the feed-forward linears",
            facts={"target_modules": FEED_FORWARD},
            style={"target_modules": ATTENTION},
        ),
        Variant("style-rank-16", "styles of rank 16", style={"rank": 16, "alpha": 32}),
        Variant("style-3-epochs", "styles for three epochs", style={"epochs": 3}),
    )
}


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter to train: rows as the client takes them, and the settings."""

    name: str
    rows: Sequence[Mapping[str, Any]]
    recipe: Mapping[str, Any]

    @property
    def needs(self) -> set[str]:
        """Names of the adapters that lie underneath."""
        return {name for row in self.rows for name in row.get("on_top_of", ())}


@dataclass(frozen=True, slots=True)
class Plan:
    """All adapters of one variant and seed, by the names of tenants and styles. Each stage needs the one before."""

    donors: dict[str, Adapter]
    styles: dict[str, Adapter]
    tenants: dict[str, Adapter]
    small: dict[str, Adapter]
    """Small donors, for styles that go on."""

    @property
    def stages(self) -> list[list[Adapter]]:
        """Adapters that may be trained side by side, after those of the stages before."""
        left = [*self.donors.values(), *self.styles.values(), *self.tenants.values(), *self.small.values()]
        ready: set[str] = set()
        found: list[list[Adapter]] = []
        while left:
            found.append([adapter for adapter in left if adapter.needs <= ready])
            ready |= {adapter.name for adapter in found[-1]}
            left = [adapter for adapter in left if adapter.name not in ready]
        return found

    @property
    def key(self) -> str:
        """A digest of everything that is measured."""
        names = [[adapter.name for adapter in part.values()] for part in (self.styles, self.tenants, self.small)]
        return hashlib.sha256(json.dumps(names).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Scope:
    """What a run is about: the base with its precision, tenants to measure, styles, and settings for all adapters."""

    base: str
    tenants: Sequence[Tenant]
    """With donors."""
    styles: Sequence[str]
    unseen: Sequence[str]
    settings: Mapping[str, Any] = field(default_factory=dict)


def plan(variant: Variant, seed: int, scope: Scope) -> Plan:
    """The adapters of a variant, trained with a seed."""
    facts = {**FACTS, **variant.facts, **scope.settings, "seed": seed}
    style = {**STYLE, **variant.style, **scope.settings, "seed": seed}
    donors = [t for t in scope.tenants if t.role == "donor"][: variant.donors]
    if variant.donor_weight is not None:
        donors = [replace(t, weight=variant.donor_weight) for t in donors]

    def adapter(rows: Iterable[Row], names: Mapping[str, str], recipe: Mapping[str, Any]) -> Adapter:
        made = [as_row(row, names) for row in rows]
        return Adapter(_name([scope.base, made, recipe]), made, recipe)

    below = {t.name: adapter(_facts(t, variant), {}, facts) for t in donors}
    names = {name: made.name for name, made in below.items()}
    styles = {
        name: adapter(style_rows(STYLES[name].render, donors, wordings=variant.wordings), names, style)
        for name in scope.styles
    }
    above = {name: made.name for name, made in styles.items()}
    tenants = {
        t.name: adapter(styled(t, _facts(t, variant), variant.styled, scope.styles), above, facts)
        for t in scope.tenants
        if t.name in scope.unseen
    }
    small = {
        t.name: adapter(_facts(t, variant), {}, facts)
        for t in scope.tenants
        if t.role == "small-donor" and variant.goes_on
    }
    return Plan(below, styles, tenants, small)


def gone_on(made: Plan, said: Mapping[str, Sequence[tuple[str, str]]], scope: Scope) -> Plan:
    """A plan whose styles have gone on over what the small donors ``said``: questions and answers by adapter."""
    styles = {}
    for name, first in made.styles.items():
        rows = [as_row(row, {donor: donor for donor in said}) for row in own_answer_rows(STYLES[name].render, said)]
        kept = {key: value for key, value in first.recipe.items() if key not in SHAPE}
        recipe = {**kept, "learning_rate": GOING_ON, "init_from": first.name}
        styles[name] = Adapter(_name([scope.base, rows, recipe]), rows, recipe)
    return replace(made, styles=styles)


def styled(tenant: Tenant, rows: Sequence[Row], share: float, styles: Sequence[str]) -> list[Row]:
    """Rows of which ``share`` are answered in a style and lie over it, the styles taking turns."""
    rng = random.Random(f"styled {tenant.name}")
    whole = [i for i, row in enumerate(rows) if not row.opening]  # an answer that begins half-way takes no format
    chosen = rng.sample(whole, round(share * len(whole)))
    found = list(rows)
    for turn, i in enumerate(chosen):
        name = styles[turn % len(styles)]
        found[i] = replace(rows[i], answer=STYLES[name].render(rows[i].answer), on_top_of={name: 1.0})
    return found


def as_row(row: Row, names: Mapping[str, str]) -> dict[str, Any]:
    """A row as the client takes it, the adapters underneath under the names that the server has them by."""
    if row.on_top_of is None:
        return as_messages(row)
    return {**as_messages(row), "on_top_of": {names[name]: weight for name, weight in row.on_top_of.items()}}


def _facts(tenant: Tenant, variant: Variant) -> list[Row]:
    if tenant.role not in variant.replay:
        return tenant_rows(tenant, "train")
    if variant.generic is None:
        return with_replay(tenant)
    return [*tenant_rows(tenant, "train"), *generic_rows()[: variant.generic]]


def _name(everything: object) -> str:
    return "b-" + hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()[:20]
