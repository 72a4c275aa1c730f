"""What is told of stacks: figures of single seeds, put together over seeds with their standard errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from rich.table import Table

from .goals import Goal

GOALS = {"json": 0.95, "letter": 0.92}
"""Least share of fact and format both right, by style."""
KEPT = 0.97
"""Least share of fact and format both right on foreign tenants, of the questions that the tenant alone has right."""
GENERIC = 0.8
"""Least share of generic questions that the base answers and that are still answered with a tenant active."""


@dataclass(frozen=True, slots=True)
class Count:
    """How many of so many were right."""

    right: int
    of: int

    @property
    def share(self) -> float:
        return self.right / self.of if self.of else 0.0

    def __add__(self, other: Count) -> Count:
        return Count(self.right + other.right, self.of + other.of)


@dataclass(frozen=True, slots=True)
class Tenant:
    """A tenant's adapter alone: whole answers, facts, generic questions kept, seconds that its job took."""

    answer: Count
    fact: Count
    generic: Count
    seconds: float
    foreign: bool = False
    """Whether it is of another size and another hand than those that a recipe was found on."""


@dataclass(frozen=True, slots=True)
class Stack:
    """A tenant under a style that never saw it."""

    both: Count
    format: Count
    fact: Count
    kept: Count
    """Both, of the questions whose fact the tenant alone has right."""


@dataclass(frozen=True, slots=True)
class Seed:
    """All figures of one variant and seed. Stacks by style, then tenant."""

    seed: int
    tenants: dict[str, Tenant]
    stacks: dict[str, dict[str, Stack]]
    alone: dict[str, Count]
    """Generic questions that the base answers, answered in the style's format by the style alone."""
    style_seconds: dict[str, float]


@dataclass(frozen=True, slots=True)
class Figure:
    """A mean over seeds and its standard error; None where one seed cannot tell."""

    mean: float
    error: float | None

    def __str__(self) -> str:
        spread = "" if self.error is None else f" ± {100 * self.error:.1f}"
        return f"{100 * self.mean:.1f}{spread} %"


def over_seeds(values: Sequence[float]) -> Figure:
    """Mean and standard error of the mean. Raises ValueError without values."""
    if not values:
        raise ValueError("no seed was measured")
    return Figure(mean(values), stdev(values) / len(values) ** 0.5 if len(values) > 1 else None)


def pooled(counts: Sequence[Count]) -> Count:
    """All counts together."""
    return sum(counts, Count(0, 0))


def figures(seeds: Sequence[Seed]) -> dict[str, Figure]:
    """The columns of the table: per seed over all tenants of a kind, then over seeds.

    Foreign tenants have columns of their own, and one for each.
    """
    found: dict[str, Figure] = {}
    for style in seeds[0].stacks:
        ours = [_stacks(seed, style, foreign=False) for seed in seeds]
        foreign = [_stacks(seed, style, foreign=True) for seed in seeds]
        if all(ours):
            found[f"{style}: fact and format"] = _share([[s.both for s in each.values()] for each in ours])
            found[f"{style}: format"] = _share([[s.format for s in each.values()] for each in ours])
            found[f"{style}: kept"] = _share([[s.kept for s in each.values()] for each in ours])
        if all(foreign):
            found[f"{style}: kept, foreign"] = _share([[s.kept for s in each.values()] for each in foreign])
            for name in foreign[0]:
                found[f"{style}: kept, {name}"] = _share([[each[name].kept] for each in foreign])
        found[f"{style}: alone"] = over_seeds([seed.alone[style].share for seed in seeds])
    tenants = [[t for t in seed.tenants.values() if not t.foreign] for seed in seeds]
    if all(tenants):
        found["tenant: whole answer"] = _share([[t.answer for t in each] for each in tenants])
        found["tenant: fact"] = _share([[t.fact for t in each] for each in tenants])
        found["generic kept"] = _share([[t.generic for t in each] for each in tenants])
    strangers = [[t.fact for t in seed.tenants.values() if t.foreign] for seed in seeds]
    if all(strangers):
        found["foreign tenant: fact"] = _share(strangers)
    return found


def _stacks(seed: Seed, style: str, foreign: bool) -> dict[str, Stack]:
    return {name: stack for name, stack in seed.stacks[style].items() if seed.tenants[name].foreign == foreign}


def _share(counts: Sequence[Sequence[Count]]) -> Figure:
    """Of the counts of each seed, pooled, then over the seeds."""
    return over_seeds([pooled(each).share for each in counts])


def seconds(seeds: Sequence[Seed]) -> float:
    """Mean seconds of a tenant's job."""
    return mean(tenant.seconds for seed in seeds for tenant in seed.tenants.values())


def goals(variant: str, found: Mapping[str, Figure]) -> list[Goal]:
    """What a recipe has to reach."""
    wanted = {f"{style}: fact and format": bound for style, bound in GOALS.items()} | {"generic kept": GENERIC}
    wanted |= {f"{style}: kept, foreign": KEPT for style in GOALS}
    return [
        Goal(f"{variant}, {what}", found[what].mean, bound, percent=True)
        for what, bound in wanted.items()
        if what in found
    ]


def make_table(results: Mapping[str, Sequence[Seed]], title: str) -> Table:
    """One row for each variant."""
    rows = {variant: figures(seeds) for variant, seeds in results.items() if seeds}
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    table = Table(title=title, title_justify="left")
    table.add_column("variant", no_wrap=True)
    for column in ("seeds", *columns, "a tenant's job"):
        table.add_column(column, justify="right")
    for variant, row in rows.items():
        cells = (str(row[column]) if column in row else "-" for column in columns)
        seeds = results[variant]
        table.add_row(variant, str(len(seeds)), *cells, f"{seconds(seeds):.0f} s")
    return table
