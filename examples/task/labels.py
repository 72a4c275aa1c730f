"""The labels, and what a prompt without training says about them."""

from __future__ import annotations

from collections.abc import Sequence

from examples.common.rows import Row, answer, question

LABELS = {
    "billing": "questions about charges, invoices and ways to pay",
    "refund": "money that the customer wants back",
    "cancel": "ending or pausing the subscription",
    "delivery": "a bike or part that is on its way, late, missing or wrong",
    "damage": "something on the bike is broken or does not work",
    "login": "passwords, codes and access to the app",
    "address": "a new address, name, number or email",
    "praise": "thanks and compliments",
}
EXAMPLES_EACH = 2
"""Examples of each label in the few-shot prompt."""


def instructions() -> str:
    """A prompt that names the labels and what each stands for."""
    lines = [f"- {label}: {meaning}" for label, meaning in LABELS.items()]
    return "\n".join(
        ["You sort tickets of a bicycle subscription. Answer with one label and nothing else. The labels:", *lines]
    )


def few_shot(rows: Sequence[Row]) -> str:
    """The instructions with the first tickets of each label in ``rows``."""
    shown: list[str] = []
    for label in LABELS:
        tickets = [question(row) for row in rows if answer(row) == label][:EXAMPLES_EACH]
        shown += [f"Ticket: {ticket}\nLabel: {label}" for ticket in tickets]
    return "\n\n".join([instructions(), "Examples:", *shown])
