"""Make an adapter of a page of instructions, and count what it keeps of the page's answers and saves of its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure as Picture

from examples.common.asking import ask, prompt_tokens
from examples.common.command import base_of, command_of, run
from examples.common.figures import Figure, Number, share
from examples.common.generic import Generic
from examples.common.picture import bars
from examples.common.report import Answers, Report, Table
from examples.common.rows import question, read_rows
from loramux import Client
from tools.score import accepted

from .training import ANSWERS, DISTILLED, EPOCHS, ON_POLICY, OWN_RATE, OWN_STEPS, QUICK, SETTINGS, train_all

DATA = Path(__file__).parent / "data"
TEACHER = "base with the page"
WAYS = {
    "base": None,
    TEACHER: None,
    "adapter of answers": ANSWERS,
    "adapter, distilled": DISTILLED,
    "adapter, distilled and on-policy": ON_POLICY,
}
QUICK_ROWS = 8
SHOWN = 4


def measure(client: Client, quick: bool) -> tuple[Report, Picture]:
    """Train, and ask the held-out questions of the base, of the teacher and of each student."""
    page = (DATA / "page.txt").read_text(encoding="utf-8").strip()
    train, held_out = (read_rows(DATA / f"{name}.jsonl") for name in ("train", "held-out"))
    if quick:
        train, held_out = train[:QUICK_ROWS], held_out[:QUICK_ROWS]
    metrics = train_all(client, page, train, held_out, quick=quick)
    generic = Generic(client, QUICK_ROWS if quick else None)
    questions = [question(row) for row in held_out]
    said, right = {}, {}
    for way, adapter in WAYS.items():
        stack = {adapter: 1.0} if adapter else None
        said[way] = ask(client, questions, stack, system=page if way == TEACHER else "")
        right[way] = [accepted(text, row["expect"]) for text, row in zip(said[way], held_out, strict=True)]
    rows: list[list[Figure | str]] = []
    for way, adapter in WAYS.items():
        kept = share(mine for mine, teacher in zip(right[way], right[TEACHER], strict=True) if teacher)
        tokens = prompt_tokens(client, questions, page if way == TEACHER else "")
        rows.append(
            [
                way,
                share(right[way]),
                kept,
                generic.kept({adapter: 1.0}) if adapter else "all",
                Number(tokens, digits=0),
                Number(1000 * tokens, digits=0),
            ]
        )
    divergence: list[list[Figure | str]] = [["base without the page", *_nearness(metrics[DISTILLED], "base")]]
    divergence += [[way, *_nearness(metrics[adapter], "eval")] for way, adapter in WAYS.items() if adapter in metrics]
    report = Report(
        "shorter_prompts",
        command_of("shorter_prompts", quick),
        base_of(client),
        [
            Table(
                f"{len(held_out)} questions in other words",
                [
                    "way to answer",
                    "right",
                    "right of those that the teacher has right",
                    "general questions kept",
                    "prompt tokens",
                    "prompt tokens of 1,000 requests",
                ],
                rows,
            ),
            Table(
                "KL(teacher || student) at the teacher's answers to these questions, without training on them",
                ["student", "nats a token", "likeliest token is the teacher's"],
                divergence,
            ),
        ],
        [
            Answers(questions[i], ", ".join(held_out[i]["expect"]), {way: said[way][i] for way in WAYS})
            for i in range(min(SHOWN, len(questions)))
        ],
        {"quick": QUICK} if quick else {**SETTINGS, "epochs": EPOCHS, "own": {"steps": OWN_STEPS, "rate": OWN_RATE}},
        {"metrics": metrics},
    )
    picture = bars(
        "Right answers with the page, and without it",
        list(WAYS),
        {"right": [share(right[way]) for way in WAYS]},
    )
    return report, picture


def _nearness(metrics: dict[str, float], side: str) -> list[Figure | str]:
    """How near a student is to its teacher on held-out rows: the divergence, and the share of equal first choices."""
    return [Number(metrics[f"{side}_loss"], digits=3), Number(metrics[f"{side}_teacher_agreement"], digits=3)]


def main(arguments: Sequence[str] | None = None) -> Report:
    """Run the example."""
    return run("shorter_prompts", __doc__ or "", measure, arguments)
