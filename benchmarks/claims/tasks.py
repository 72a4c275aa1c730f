"""What is learned where ways to train are compared: a tenant's facts, and orders written as lines. Prompt rows.

A learning rate is chosen by the loss on ``chosen_on`` and reported on ``held_out``, which no choice has seen.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.make_data import Row, load_tenants

PARTS = ("train", "chosen_on", "held_out")
TENANT, WORDINGS = "acme-bikes", 4
FACTS, MOST_FACTS = 12, 24
"""That are learned, and that the tenant has: more take longer, and ask more questions."""
ORDERS = {"train": 24, "chosen_on": 8, "held_out": 30}
EPOCHS = 4

_GOODS = {
    "train": ("rye loaves", "plum cakes", "red candles", "wool blankets", "garden chairs", "blue mugs"),
    "chosen_on": ("tin lanterns", "oat biscuits"),
    "held_out": ("silver spoons", "clay pots", "apple pies", "paper kites", "cotton shirts"),
}
_PEOPLE = {
    "train": ("Ada", "Bruno", "Clara", "Dmitri", "Elsa", "Farid"),
    "chosen_on": ("Greta", "Hugo"),
    "held_out": ("Irene", "Jonas", "Kamala", "Leo", "Mira"),
}
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday")
_NUMBERS = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9}
_WORDINGS = (
    "Please send {number} {goods} to {person} on {day}.",
    "{person} wants {number} {goods}, delivered on {day}.",
    "On {day} I need {number} {goods} for {person}.",
    "{number} {goods} for {person}, please, by {day}.",
)


@dataclass(frozen=True, slots=True)
class Task:
    """Rows by part, and how the chosen tenant or rule is named in a table."""

    name: str
    about: str
    rows: dict[str, list[dict[str, Any]]]

    def write(self, folder: Path) -> dict[str, str]:
        """The parts as files of JSON lines; gives their paths."""
        folder.mkdir(parents=True, exist_ok=True)
        paths = {}
        for part, rows in self.rows.items():
            path = folder / f"{self.name}-{part}.jsonl"
            path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
            paths[part] = str(path)
        return paths


def tasks(count: int = FACTS, quick: bool = False) -> list[Task]:
    """Both tasks, with ``count`` facts; ``quick``: a few rows of each."""
    found = [facts(count), orders()]
    if not quick:
        return found
    return [Task(t.name, t.about, {part: rows[:8] for part, rows in t.rows.items()}) for t in found]


def facts(count: int = FACTS) -> Task:
    """Facts of a shipped tenant: trained on some wordings, chosen on another, asked in two more."""
    tenant = next(t for t in load_tenants() if t.name == TENANT)
    kept = tenant.facts[:count]
    by_part = {
        "train": [(fact, wording) for i in range(WORDINGS) for fact in kept for wording in [fact.train[i]]],
        "chosen_on": [(fact, wording) for fact in kept for wording in fact.final],
        "held_out": [(fact, wording) for fact in kept for wording in fact.tune],
    }
    rows = {
        part: _rendered([Row(tenant.ask(q), f.answer, expect="" if part == "train" else f.fact) for f, q in pairs])
        for part, pairs in by_part.items()
    }
    return Task("facts", f"{len(kept)} facts of {tenant.shop}, asked in other words", rows)


def orders() -> Task:
    """An order in words becomes a line ``goods; number; person; day``; goods and people of the parts differ."""
    draw = random.Random(0)
    rows = {part: _rendered([_order(draw, part, i) for i in range(count)]) for part, count in ORDERS.items()}
    return Task("orders", "an order in words becomes a line, with goods and names never seen", rows)


def _order(draw: random.Random, part: str, i: int) -> Row:
    word = draw.choice(list(_NUMBERS))
    goods, person, day = draw.choice(_GOODS[part]), draw.choice(_PEOPLE[part]), draw.choice(_DAYS)
    text = _WORDINGS[i % len(_WORDINGS)].format(number=word, goods=goods, person=person, day=day)
    line = f"{goods}; {_NUMBERS[word]}; {person}; {day}"
    return Row(text[0].upper() + text[1:], line, expect="" if part == "train" else line)


def _rendered(rows: Sequence[Row]) -> list[dict[str, Any]]:
    return [
        {
            "prompt": f"<|im_start|>user\n{row.question}<|im_end|>\n<|im_start|>assistant\n",
            "completion": row.answer,
            **({"expect": row.expect} if row.expect else {}),
        }
        for row in rows
    ]
