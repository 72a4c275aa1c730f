"""What is told of training in the end: one table, and the goals."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rich.table import Table

from .goals import Goal
from .train_job import PEERS, TITLES, TrainResult, final_loss, time_to, tokens_per_second

ENOUGH = 0.9
"""Share of held-out questions at which a system has learned the data."""
Accuracy = Mapping[int, Mapping[str, float]]
"""Step -> share right of ``answer`` (to the letter) and ``fact``."""


@dataclass(frozen=True, slots=True)
class Row:
    """One system with one set of settings. Times in seconds, memory in bytes."""

    dtype: str
    layers: str
    system: str
    jobs: int
    tokens_per_second: float
    seconds: float
    """From when the job was asked for to the end of the last step."""
    loss: float
    peak_bytes: int
    to_answers: float | None = None
    to_facts: float | None = None
    answers: float | None = None
    """Share of whole answers right after the last step."""
    facts: float | None = None


def make_row(dtype: str, layers: str, system: str, result: TrainResult, accuracy: Accuracy) -> Row:
    """The figures of a result; ``accuracy`` is empty where nobody asked."""
    first = result.jobs[0]
    answers = {step: found["answer"] for step, found in accuracy.items()}
    facts = {step: found["fact"] for step, found in accuracy.items()}
    return Row(
        dtype=dtype,
        layers=layers,
        system=system,
        jobs=len(result.jobs),
        tokens_per_second=tokens_per_second(result.jobs),
        seconds=max(job.ends[-1] for job in result.jobs),
        loss=final_loss(first),
        peak_bytes=result.peak_bytes,
        to_answers=time_to(ENOUGH, answers, first.ends),
        to_facts=time_to(ENOUGH, facts, first.ends),
        answers=answers[max(answers)] if answers else None,
        facts=facts[max(facts)] if facts else None,
    )


def goals(rows: Iterable[Row]) -> list[Goal]:
    """How loramux stands to TRL: speed alone, speed with several jobs at once, and memory."""
    found: list[Goal] = []
    table = {(r.dtype, r.layers, r.system): r for r in rows}
    for (dtype, layers, system), ours in table.items():
        if system not in ("loramux", "loramux-jobs"):
            continue
        name = f"{dtype}, layers {layers}, {ours.jobs} job{'s' * (ours.jobs > 1)}"
        for peer in PEERS:
            if (theirs := table.get((dtype, layers, peer))) is None:
                continue
            speed = ours.tokens_per_second / theirs.tokens_per_second
            found.append(Goal(f"{name}: tokens/s of {TITLES[peer]}", speed, 2.0 if ours.jobs == 1 else 3.0))
            if ours.peak_bytes and theirs.peak_bytes:
                memory = ours.peak_bytes / theirs.peak_bytes
                found.append(Goal(f"{name}: peak memory of {TITLES[peer]}", memory, 1.0, at_most=True))
    return found


def make_table(rows: Sequence[Row], title: str) -> Table:
    """Rows in the order given."""
    table = Table(title=title, title_justify="left")
    for column in ("type", "layers", "system"):
        table.add_column(column, no_wrap=True)
    for column in ("jobs", "tokens/s", "all steps", "90 % answers", "90 % facts", "answers", "facts", "loss", "peak"):
        table.add_column(column, justify="right", no_wrap=True)
    last: tuple[str, str] | None = None
    for row in rows:
        group = (row.dtype, row.layers)
        if group != last:
            table.add_section()
        table.add_row(*(("", "") if group == last else group), *_cells(row))
        last = group
    return table


def _cells(row: Row) -> tuple[str, ...]:
    return (
        TITLES[row.system],
        str(row.jobs),
        f"{row.tokens_per_second:.0f}",
        f"{row.seconds:.1f} s",
        *("-" if t is None else f"{t:.1f} s" for t in (row.to_answers, row.to_facts)),
        *("-" if share is None else f"{share:.1%}" for share in (row.answers, row.facts)),
        f"{row.loss:.4f}",
        f"{row.peak_bytes / 2**20:.0f} MiB" if row.peak_bytes else "-",
    )
