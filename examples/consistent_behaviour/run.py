"""Strict JSON of one schema, and a rule about prices: adapters that work over a tenant they never met.

    make example-consistent-behaviour
    python -m examples.consistent_behaviour --quick

Both are trained by the recipe ``style`` over four tenants and asked over another. Adapters of tenants that are
neither ready-made nor kept from an earlier run are trained first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure as Picture

from examples.common.command import base_of, command_of, run
from examples.common.figures import Share, share
from examples.common.picture import bars
from examples.common.report import Answers, Report, Table
from examples.common.rows import Row, question, read_rows
from examples.common.styles import Way, kept, told, train, unseen
from loramux import Client

from .forms import AMOUNT, DATA, JSON_PROMPT, SCHEMA, TAX, TAX_PROMPT, read_json, rule_kept

JSON, RULE = "example-json", "example-tax"
ALONE = Way("tenant alone")
JSON_WAYS = (
    Way("base, prompt", tenant=False, system=JSON_PROMPT),
    Way("tenant, prompt", system=JSON_PROMPT),
    Way("tenant, schema enforced", schema=SCHEMA),
    Way("tenant + JSON adapter", form=JSON),
    Way("tenant + JSON adapter, schema enforced", form=JSON, schema=SCHEMA),
)
RULE_WAYS = (
    ALONE,
    Way("tenant, prompt", system=TAX_PROMPT),
    Way("tenant + rule adapter", form=RULE),
)
EPOCHS = 1
QUICK_STEPS, QUICK_FACTS = 16, 6
SHOWN = 2

Asked = dict[str, dict[str, list[str]]]
"""Answers by the titles of ways and the names of tenants."""


def asked(client: Client, ways: Sequence[Way], rows: Mapping[str, list[Row]]) -> Asked:
    """All ways' answers to all tenants' questions."""
    return {way.title: {name: way.ask(client, name, each) for name, each in rows.items()} for way in ways}


def measure(client: Client, quick: bool) -> tuple[Report, Picture]:
    """Train, ask and judge."""
    settings = {"recipe": "style", **({"max_steps": QUICK_STEPS} if quick else {"epochs": EPOCHS})}
    forms = {JSON: read_rows(DATA / "train_json.jsonl"), RULE: read_rows(DATA / "train_tax.jsonl")}
    train(client, forms, quick, **settings)
    rows = unseen(client, quick, QUICK_FACTS)
    more = read_rows(DATA / "held_out.jsonl")
    prices = {name: [row for row in more if row["tenant"] == name] for name in rows}
    alone = asked(client, [ALONE], rows)[ALONE.title]
    as_json = asked(client, JSON_WAYS, rows)
    with_rule = asked(client, RULE_WAYS, {name: [*rows[name], *prices[name]] for name in rows})
    right = {name: told(answers, rows[name]) for name, answers in alone.items()}
    formats = {title: format_of(answers, rows, right) for title, answers in as_json.items()}
    rules = {title: rule_of(answers, with_rule[ALONE.title], rows, prices) for title, answers in with_rule.items()}
    tables = [
        Table(
            "Objects of the schema, over a tenant never seen",
            ["", "format kept", "fact right in the format", "the same, of those right alone", "price flag right"],
            [[title, *figures] for title, figures in formats.items()],
        ),
        Table(
            f'The rule: "{TAX}" after every amount of money and nowhere else, over a tenant never seen',
            [
                "",
                "amounts quoted with tax",
                "fact and rule, of prices right alone",
                "other facts kept, of those right alone",
            ],
            [[title, *figures] for title, figures in rules.items()],
        ),
    ]
    report = Report(
        "consistent_behaviour",
        command_of("consistent_behaviour", quick),
        base_of(client),
        tables,
        [
            *shown(rows, {ALONE.title: alone, **as_json}),
            *shown(prices, {t: tail(a, prices) for t, a in with_rule.items()}),
        ],
        settings=settings,
    )
    return report, draw(formats)


def format_of(
    answers: Mapping[str, list[str]], rows: Mapping[str, list[Row]], right: Mapping[str, list[bool]]
) -> tuple[Share, Share, Share, Share]:
    """How one way keeps the schema: format, fact in it, the same of those right alone, and the flag of objects."""
    found = {name: [read_json(answer) for answer in each] for name, each in answers.items()}
    objects = [one for each in found.values() for one in each]
    held = {name: told([one[0] if one else "" for one in each], rows[name]) for name, each in found.items()}
    return (
        share(one is not None for one in objects),
        share(one for each in held.values() for one in each),
        kept(flat(held), flat(right)),
        share(bool(AMOUNT.search(one[0])) == one[1] for one in objects if one),
    )


def rule_of(
    answers: Mapping[str, list[str]],
    alone: Mapping[str, list[str]],
    rows: Mapping[str, list[Row]],
    prices: Mapping[str, list[Row]],
) -> tuple[Share, Share, Share]:
    """How one way keeps the rule: where amounts are quoted, where a price is asked for, and everywhere else."""
    quoted: list[bool] = []
    priced: list[bool] = []
    others: list[bool] = []
    for name, each in answers.items():
        asked_for = [*rows[name], *prices[name]]
        quoted += [rule_kept(answer) for answer in each if AMOUNT.search(answer)]
        right, before = told(each, asked_for), told(alone[name], asked_for)
        for row, answer, now, then in zip(asked_for, each, right, before, strict=True):
            if then:
                (priced if AMOUNT.search(row["expect"]) else others).append(now and rule_kept(answer))
    return share(quoted), share(priced), share(others)


def flat(judged: Mapping[str, list[bool]]) -> list[bool]:
    """All tenants' in one list."""
    return [one for each in judged.values() for one in each]


def tail(answers: Mapping[str, list[str]], prices: Mapping[str, list[Row]]) -> dict[str, list[str]]:
    """The answers to the questions about prices, which were asked last."""
    return {name: each[len(each) - len(prices[name]) :] for name, each in answers.items()}


def shown(rows: Mapping[str, list[Row]], answers: Asked) -> list[Answers]:
    """The first questions of each tenant, with all ways' answers."""
    return [
        Answers(question(row), row["expect"], {title: each[name][i] for title, each in answers.items()})
        for name, those in rows.items()
        for i, row in enumerate(those[:SHOWN])
    ]


def draw(formats: Mapping[str, Sequence[Share]]) -> Picture:
    """Format and fact of each way."""
    series = {
        "format kept": [f[0] for f in formats.values()],
        "fact kept, of those right alone": [f[2] for f in formats.values()],
    }
    groups = [title.replace(", ", ",\n").replace(" + ", " +\n") for title in formats]
    return bars("JSON of one schema, over a tenant never seen", groups, series)


def main(arguments: Sequence[str] | None = None) -> Report:
    """Run the example."""
    return run("consistent_behaviour", __doc__ or "", measure, arguments)
