"""Three ways to make an adapter of the page: from answers, from its teacher, and from its own answers corrected."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from examples.common.rows import Row
from loramux import Client

ANSWERS, DISTILLED, ON_POLICY = "page-answers", "page-distilled", "page-on-policy"
SETTINGS: dict[str, Any] = {"batch_size": 8, "rank": 16, "seed": 0, "replay": "default", "gate": "none"}
EPOCHS, OWN_STEPS = 8, 24
QUICK: dict[str, Any] = {"batch_size": 4, "rank": 8, "seed": 0, "gate": "none"}
QUICK_STEPS = 4
OWN_RATE = 5e-4
"""Peak learning rate of the on-policy part, which starts from an adapter that is near the teacher already."""


def unanswered(rows: Sequence[Row]) -> list[Row]:
    """The questions alone: the teacher answers them."""
    return [{"messages": row["messages"][:-1]} for row in rows]


def train_all(
    client: Client, page: str, train: Sequence[Row], held_out: Sequence[Row], *, quick: bool
) -> dict[str, dict[str, float]]:
    """Train the three adapters on the same questions; gives the metrics of each that was distilled."""
    settings = QUICK if quick else SETTINGS
    length: dict[str, Any] = {"max_steps": QUICK_STEPS} if quick else {"epochs": EPOCHS}
    own: dict[str, Any] = {"max_steps": QUICK_STEPS if quick else OWN_STEPS, "learning_rate": OWN_RATE}
    asked, measured = unanswered(train), unanswered(held_out)
    client.train(ANSWERS, data=train, **settings, **length).wait()
    jobs = {
        DISTILLED: client.train(DISTILLED, data=asked, validation=measured, context=page, **settings, **length),
    }
    jobs[DISTILLED].wait()
    jobs[ON_POLICY] = client.train(
        ON_POLICY,
        data=asked,
        validation=measured,
        context=page,
        on_policy=True,
        init_from=DISTILLED,
        **{name: value for name, value in settings.items() if name != "rank"},
        **own,
    )
    jobs[ON_POLICY].wait()
    return {name: dict(job.info.metrics) for name, job in jobs.items()}
