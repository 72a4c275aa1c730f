"""Four tenants' facts, closed book: base, prompt, retrieval and adapter on wordings that were never trained.

    make example-domain-knowledge
    python -m examples.domain_knowledge --quick

Each tenant is one job of the recipe ``facts`` that compares the ways on the held-out rows by itself. Beside it: which
general questions of the base each adapter keeps.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict

from matplotlib.figure import Figure as Picture

from examples.common.command import base_of, command_of, finish, parser_of
from examples.common.figures import Figure, Number, Share
from examples.common.generic import Generic
from examples.common.picture import bars
from examples.common.report import Answers, Report, Table
from examples.common.rows import question
from examples.common.tenants import TENANTS, Tenant, keep
from loramux import Client, Job
from loramux.comparison import TITLES, Comparison
from loramux.types import JudgedRow

SHOWN = 2
"""Held-out rows of each tenant that are shown with all answers."""
QUICK_TENANT, QUICK_ROWS, QUICK_GENERIC = "brindle-ski", 10, 12


def start(client: Client, tenant: Tenant, quick: bool) -> Job:
    """Start a tenant's job, with the comparison."""
    fewer = {"epochs": None, "max_steps": 30, "replay_rows": 8} if quick else {}
    return client.train(
        tenant.name,
        tenant.rows,
        validation=tenant.held_out[:QUICK_ROWS] if quick else tenant.held_out,
        compare_prompt=tenant.prompt,
        compare_documents=[tenant.handbook],
        gate="none",
        **{**tenant.recipe, **fewer},
    )


def measure(client: Client, quick: bool, names: Sequence[str] = TENANTS) -> tuple[Report, Picture]:
    """Train all tenants side by side, and compare."""
    tenants = [Tenant.read(name) for name in ([QUICK_TENANT] if quick else names)]
    generic = Generic(client, QUICK_GENERIC if quick else None)
    jobs = [start(client, tenant, quick) for tenant in tenants]
    found: dict[str, Comparison] = {}
    answers: list[Answers] = []
    kept: dict[str, Share] = {}
    for tenant, job in zip(tenants, jobs, strict=True):
        name = tenant.name
        job.wait(progress=True)
        compared = job.info.comparison
        assert compared is not None
        found[name] = compared
        answers += shown(tenant, job.info.answers)
        kept[name] = generic.kept({name: 1.0})
        if not quick:
            keep(client, name)
    some = [] if quick or tuple(names) == TENANTS else [f"--tenant {name}" for name in names]
    report = Report(
        "domain_knowledge",
        command_of("domain_knowledge", quick, *some),
        base_of(client),
        [facts_table(tenants, found, kept), cost_table(found)],
        answers,
        settings={tenant.name: tenant.recipe for tenant in tenants},
        details={
            name: {"verdict": each.verdict, "sides": {side: asdict(value) for side, value in each.by_name.items()}}
            for name, each in found.items()
        },
    )
    return report, draw(found)


def facts_table(tenants: Sequence[Tenant], found: Mapping[str, Comparison], kept: Mapping[str, Share]) -> Table:
    """What is right of each tenant's held-out questions, each way."""
    sides = list(next(iter(found.values())).by_name)
    rows: list[list[Figure | str]] = []
    for tenant in tenants:
        right = [right_of(found[tenant.name], side) for side in sides]
        rows.append([f"`{tenant.name}`", Number(len(tenant.facts), digits=0), *right, kept[tenant.name]])
    if len(tenants) > 1:
        everybody = [total(right_of(each, side) for each in found.values()) for side in sides]
        count = Number(sum(len(tenant.facts) for tenant in tenants), digits=0)
        rows.append(["all", count, *everybody, total(kept.values())])
    head = ["", "facts", *(TITLES[side] for side in sides), "general questions kept"]
    return Table("Held-out wordings answered with the right fact", head, rows)


def right_of(found: Comparison, side: str) -> Share:
    """The rows that one way has right."""
    return Share(round(found.by_name[side].accuracy * found.questions), found.questions)


def total(shares: Iterable[Share]) -> Share:
    """The sum of shares."""
    return sum(shares, Share(0, 0))


def cost_table(found: Mapping[str, Comparison]) -> Table:
    """What a thousand requests of each tenant cost, each way."""
    sides = list(next(iter(found.values())).by_name)
    rows: list[list[Figure | str]] = [
        [f"`{name}`", *(Number(1000 * each.by_name[side].tokens, digits=0) for side in sides)]
        for name, each in found.items()
    ]
    return Table("Tokens of a thousand requests", ["", *(TITLES[side] for side in sides)], rows)


def shown(tenant: Tenant, rows: Sequence[JudgedRow]) -> list[Answers]:
    """The tenant's first held-out rows, with what each way answered."""
    return [
        Answers(
            question(asked),
            " or ".join(row.expected),
            {TITLES[side]: f"{said.text} [{'right' if said.right else 'wrong'}]" for side, said in row.answers.items()},
        )
        for asked, row in zip(tenant.held_out, rows[:SHOWN], strict=False)
    ]


def draw(found: Mapping[str, Comparison]) -> Picture:
    """A group of bars for each tenant."""
    sides = list(next(iter(found.values())).by_name)
    series = {TITLES[side]: [right_of(each, side) for each in found.values()] for side in sides}
    return bars("Right facts on wordings that were not trained", list(found), series, "share of held-out questions")


def main(arguments: Sequence[str] | None = None) -> Report:
    """Run the example."""
    parser = parser_of("domain_knowledge", __doc__ or "")
    parser.add_argument("--tenant", action="append", choices=TENANTS, help="may be repeated (default: all four)")
    options = parser.parse_args(arguments)
    names = options.tenant or TENANTS
    return finish("domain_knowledge", lambda client, quick: measure(client, quick, names), options)
