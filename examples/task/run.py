"""Sort tickets into eight kinds: the base with instructions and examples, and an adapter with neither."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure as Picture

from examples.common.asking import IN_FLIGHT, ask, prompt_tokens
from examples.common.command import base_of, command_of, run
from examples.common.figures import Figure, Number, share
from examples.common.report import Answers, Report, Table
from examples.common.rows import Row, answer, question, read_rows
from loramux import Client

from .figures import calibration_error, confusion, f1_scores, fitted_temperature, probabilities
from .labels import LABELS, few_shot, instructions

DATA = Path(__file__).parent / "data"
NAME = "tickets"
SETTINGS: dict[str, Any] = {"epochs": 8, "batch_size": 8, "rank": 16, "seed": 0}
QUICK: dict[str, Any] = {"max_steps": 12, "batch_size": 8, "rank": 8}
MAX_TOKENS = 8
SHOWN = 4


def measure(client: Client, quick: bool) -> tuple[Report, Picture]:
    """Train on tickets, and ask for the labels of others in other words."""
    train, calibration, test = (read_rows(DATA / f"{name}.jsonl") for name in ("train", "calibration", "test"))
    if quick:
        calibration, test = calibration[:6], test[:6]
    settings = QUICK if quick else SETTINGS
    client.train(NAME, data=train, **settings).wait()
    wanted, labels = [answer(row) for row in test], list(LABELS)
    shape = {"choice": labels}
    ways = {
        "base, instructions": (instructions(), None),
        "base, instructions and 16 examples": (few_shot(train), None),
        "adapter": ("", {NAME: 1.0}),
    }
    rows: list[list[Figure | str]] = []
    said: dict[str, list[str]] = {}
    tickets = [question(row) for row in test]
    for way, (system, adapters) in ways.items():
        for name, options in ((way, {}), (f"{way}, held to the labels", {"response_format": shape})):
            given = [
                text.strip() for text in ask(client, tickets, adapters, system=system, max_tokens=MAX_TOKENS, **options)
            ]
            said[name] = given
            f1 = f1_scores(labels, wanted, given)
            right = share(w == g for w, g in zip(wanted, given, strict=True))
            macro = Number(sum(f1.values()) / len(f1), digits=3)
            valid = share(g in LABELS for g in given)
            rows.append([name, right, macro, valid, Number(prompt_tokens(client, tickets, system), digits=0)])
    counts = confusion(labels, wanted, said["adapter, held to the labels"])
    report = Report(
        "task",
        command_of("task", quick),
        base_of(client),
        [
            Table(
                f"{len(test)} tickets in other words, {len(labels)} labels",
                ["way to answer", "right label", "macro F1", "answers that are a label", "prompt tokens"],
                rows,
            ),
            _calibration(client, calibration, test),
        ],
        [
            Answers(ticket, label, {way: given[i] for way, given in said.items()})
            for i, (ticket, label) in enumerate(zip(tickets, wanted, strict=True))
            if i < SHOWN
        ],
        settings,
        {"confusion": counts, "labels": labels},
    )
    return report, matrix(labels, counts)


def _calibration(client: Client, calibration: Sequence[Row], test: Sequence[Row]) -> Table:
    """How far the adapter's probabilities are from how often it is right, before and after a temperature."""
    places = {label: i for i, label in enumerate(LABELS)}
    fit_on, measured_on = _scores(client, calibration), _scores(client, test)
    temperature = fitted_temperature(fit_on, [places[answer(row)] for row in calibration])
    wanted = [places[answer(row)] for row in test]
    rows: list[list[Figure | str]] = []
    for name, value in (("as scored", 1.0), ("with the temperature", temperature)):
        probs = [probabilities(logprobs, value) for logprobs in measured_on]
        best = share(row.index(max(row)) == right for row, right in zip(probs, wanted, strict=True))
        confidence = Number(sum(map(max, probs)) / len(probs), digits=3)
        rows.append(
            [name, Number(value, digits=2), best, confidence, Number(calibration_error(probs, wanted), digits=3)]
        )
    return Table(
        f"Probabilities of the labels by `client.score`; the temperature is of {len(calibration)} other tickets",
        ["probabilities", "temperature", "likeliest label right", "mean confidence", "expected calibration error"],
        rows,
    )


def _scores(client: Client, rows: Sequence[Row]) -> list[list[float]]:
    """For each ticket the log-probability of every label as the adapter's answer."""

    def one(pair: tuple[str, str]) -> float:
        ticket, label = pair
        messages = [{"role": "user", "content": ticket}]
        return client.score(messages=messages, continuation=label, adapters=[NAME]).total

    pairs = [(question(row), label) for row in rows for label in LABELS]
    with ThreadPoolExecutor(IN_FLIGHT) as pool:
        found = list(pool.map(one, pairs))
    return [found[start : start + len(LABELS)] for start in range(0, len(found), len(LABELS))]


def matrix(labels: Sequence[str], counts: Sequence[Sequence[int]]) -> Picture:
    """A picture of the confusion matrix: wanted labels down, given labels across."""
    picture = Picture(figsize=(7, 6), layout="constrained")
    axes = picture.add_subplot()
    shown = [row[: len(labels)] for row in counts]
    axes.imshow(shown, cmap="Blues")
    most = max(map(max, shown))
    for i, row in enumerate(shown):
        for j, count in enumerate(row):
            if count:
                axes.text(j, i, str(count), ha="center", va="center", color="white" if 2 * count > most else "black")
    axes.set_xticks(range(len(labels)), labels, rotation=45)
    axes.set_yticks(range(len(labels)), labels)
    axes.set(title="Tickets by their label and the adapter's", xlabel="given", ylabel="wanted")
    return picture


def main(arguments: Sequence[str] | None = None) -> Report:
    """Run the example."""
    return run("task", __doc__ or "", measure, arguments)
