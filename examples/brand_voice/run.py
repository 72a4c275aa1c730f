"""A tone of writing as an adapter, over the facts of a tenant that it never met, beside a prompt that asks for it.

    make example-brand-voice
    python -m examples.brand_voice --quick

The voice is trained by the recipe ``style`` over four tenants and asked over another. Adapters of tenants that are
neither ready-made nor kept from an earlier run are trained first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure as Picture

from examples.common.command import base_of, command_of, run
from examples.common.figures import Number, Share, mean, share
from examples.common.picture import bars
from examples.common.report import Answers, Report, Table
from examples.common.rows import Row, question, read_rows
from examples.common.styles import Way, kept, told, train, unseen
from loramux import Client

from .voice import DATA, PROMPT, body, marks

VOICE = "example-voice"
ALONE = Way("tenant alone")
WAYS = (
    Way("base", tenant=False),
    Way("base, prompt", tenant=False, system=PROMPT),
    ALONE,
    Way("tenant, prompt", system=PROMPT),
    Way("tenant + voice adapter", form=VOICE),
)
QUICK_STEPS, QUICK_FACTS = 16, 6
SHOWN = 3


def measure(client: Client, quick: bool) -> tuple[Report, Picture]:
    """Train, ask and judge."""
    settings = {"recipe": "style", **({"max_steps": QUICK_STEPS} if quick else {})}
    train(client, {VOICE: read_rows(DATA / "train.jsonl")}, quick, **settings)
    rows = unseen(client, quick, QUICK_FACTS)
    answers = {way.title: {name: way.ask(client, name, each) for name, each in rows.items()} for way in WAYS}
    alone = [one for name, each in answers[ALONE.title].items() for one in told(each, rows[name])]
    found = {title: figures(each, rows, alone) for title, each in answers.items()}
    first = next(iter(found.values()))
    report = Report(
        "brand_voice",
        command_of("brand_voice", quick),
        base_of(client),
        [
            Table(
                "Marks of the voice, over a tenant never seen",
                ["", *first],
                [[title, *figures.values()] for title, figures in found.items()],
            )
        ],
        [
            Answers(question(row), row["expect"], {title: each[name][i] for title, each in answers.items()})
            for name, those in rows.items()
            for i, row in enumerate(those[:SHOWN])
        ],
        settings=settings,
    )
    return report, draw(found)


def figures(
    answers: Mapping[str, list[str]], rows: Mapping[str, list[Row]], alone: Sequence[bool]
) -> dict[str, Share | Number]:
    """How one way keeps the voice, and the facts in it."""
    said = [answer for each in answers.values() for answer in each]
    judged = [marks(answer) for answer in said]
    voice = [all(each.values()) for each in judged]
    right = [one for name, each in answers.items() for one in told([body(answer) for answer in each], rows[name])]
    held = [one and now for one, now in zip(voice, right, strict=True)]
    return {
        **{name: share(each[name] for each in judged) for name in judged[0]},
        "all marks": share(voice),
        "words an answer": mean([len(answer.split()) for answer in said]),
        "fact right": share(right),
        "fact and voice, of those right alone": kept(held, alone),
    }


def draw(found: Mapping[str, Mapping[str, Share | Number]]) -> Picture:
    """A group of bars for each mark."""
    names = [name for name, figure in next(iter(found.values())).items() if isinstance(figure, Share)]
    series = {title: [figures[name] for name in names] for title, figures in found.items()}
    return bars("A voice on top of facts, over a tenant never seen", [n.replace(" ", "\n") for n in names], series)


def main(arguments: Sequence[str] | None = None) -> Report:
    """Run the example."""
    return run("brand_voice", __doc__ or "", measure, arguments)
