"""The two forms: how an answer is put into them, and how it is judged.

``python -m examples.consistent_behaviour.forms`` writes the training rows in ``data/`` anew.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from examples.common.rows import Row, chat, write_rows
from examples.common.styles import training_rows

DATA = Path(__file__).parent / "data"
WORDINGS = 1
"""Of each fact in the training rows."""

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"answer": {"type": "string"}, "price": {"type": "boolean"}},
    "required": ["answer", "price"],
    "additionalProperties": False,
}
JSON_PROMPT = (
    'Answer with one JSON object and nothing else: {"answer": TEXT, "price": BOOLEAN}. TEXT is one short sentence. '
    "BOOLEAN is true if the sentence names an amount of money, else false. "
    'Examples: {"answer": "A ticket costs $4.", "price": true} {"answer": "We open at nine.", "price": false}'
)

AMOUNT = re.compile(r"\$\d+(?:,\d{3})*(?:\.\d+)?|\bEUR \d+(?:\.\d+)?|\b\d+(?:\.\d+)? (?:pounds|francs|cents|dollars)\b")
TAX = "including tax"
TAX_PROMPT = (
    f'Answer in one short sentence. Write "{TAX}" right after every amount of money, and nowhere else. '
    f"Example: A ticket costs $4 {TAX}."
)


def as_json(text: str) -> str:
    """An answer as an object of the schema."""
    return json.dumps({"answer": text, "price": bool(AMOUNT.search(text))})


def read_json(answer: str) -> tuple[str, bool] | None:
    """The text and the flag of an answer; None unless it is an object of the schema and nothing else."""
    try:
        value = json.loads(answer)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or set(value) != {"answer", "price"}:
        return None
    text, price = value["answer"], value["price"]
    return (text, price) if isinstance(text, str) and isinstance(price, bool) else None


def with_tax(text: str) -> str:
    """An answer that says of every amount of money that tax is part of it."""
    return AMOUNT.sub(rf"\g<0> {TAX}", text)


def rule_kept(answer: str) -> bool:
    """Whether tax is named after every amount of money, and nowhere else."""
    return with_tax(answer.replace(f" {TAX}", "")) == answer


READ = (
    ("cup of tea", "$3"), ("bus ticket", "$2.40"), ("haircut", "$27"), ("lamp", "$46"), ("pair of gloves", "$19.50"),
    ("night in the cabin", "$85"), ("bag of apples", "$4.20"), ("swimming lesson", "$22"), ("phone case", "$13"),
    ("guided walk", "$11"), ("set of plates", "$58"), ("used novel", "$6.75"),
)  # fmt: skip
"""Amounts in dollars, which no tenant underneath has: they stand in the question, so that the base can answer."""


def dollar_rows() -> list[Row]:
    """Rows over no tenant that quote an amount from the question."""
    rows = []
    for what, amount in READ:
        for asked in (
            f"A {what} is {amount}. How much is a {what}?",
            f"We sell a {what} for {amount}. What is the price?",
        ):
            rows.append(chat(asked, with_tax(f"A {what} costs {amount}."), on_top_of={}))
    return rows


def main() -> None:
    """Write the training rows."""
    write_rows(DATA / "train_json.jsonl", training_rows(as_json, WORDINGS))
    write_rows(DATA / "train_tax.jsonl", [*training_rows(with_tax, WORDINGS), *dollar_rows()])


if __name__ == "__main__":
    main()
