"""Named settings for training: what was measured to work, given for a base of any size. Pure functions.

Where the numbers come from: docs/stacking.md. A recipe fills in what the caller left out, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from ....core.backend import EngineInfo
from ....core.errors import FieldViolation, invalid_field
from ....core.jobs import JobRequest, TrainSpec
from ....core.types import StackItem
from ...datasets.replay import DEFAULT
from .defaults import DPO_SHARE, automatic_learning_rate

FACTS, STYLE = "facts", "style"
STYLE_SHARE = 2 / 3
"""A style's learning rate, of that for facts: 2e-3 against 3e-3 where both were measured."""


def upper_half(info: EngineInfo) -> tuple[int, ...]:
    """The layers of the upper half: 15 to 29 of 30."""
    return tuple(range(info.num_layers // 2, info.num_layers))


def _facts(info: EngineInfo) -> dict[str, Any]:
    return {
        "rank": 16,
        "alpha": 32.0,
        "layers": upper_half(info),
        "learning_rate": automatic_learning_rate(info),
        "epochs": 4.0,
        "replay": DEFAULT,
    }


def _style(info: EngineInfo) -> dict[str, Any]:
    return {
        "rank": 8,
        "alpha": 16.0,
        "layers": upper_half(info),
        "learning_rate": automatic_learning_rate(info, STYLE_SHARE),
        "epochs": 2.0,
    }


RECIPES: dict[str, Callable[[EngineInfo], dict[str, Any]]] = {FACTS: _facts, STYLE: _style}


def chosen_rate(method: str, recipe: str, info: EngineInfo) -> float:
    """The learning rate of a job whose maker leaves it open, by its method and recipe."""
    if recipe in RECIPES:
        return float(RECIPES[recipe](info)["learning_rate"])
    return automatic_learning_rate(info, DPO_SHARE if method == "dpo" else 1.0)


def with_recipe(request: JobRequest, info: EngineInfo) -> JobRequest:
    """``request`` with its recipe's settings where the caller gave none. Raises INVALID_ARGUMENT for an unknown one."""
    if not request.recipe:
        return request
    # The shape stays open: with ``init_from`` it is that version's.
    given = request.given and request.given | {"learning_rate"}
    return replace(request, spec=filled_in(request.spec, request.recipe, request.gave, info), given=given)


def filled_in(spec: TrainSpec, recipe: str, gave: Callable[[str], bool], info: EngineInfo) -> TrainSpec:
    """``spec`` with a recipe's settings where the caller ``gave`` none. Raises INVALID_ARGUMENT for an unknown one.

    Who gives 0 ``replay_rows`` wants none replayed.
    """
    if recipe not in RECIPES:
        raise invalid_field("recipe", f"{recipe[:40]!r} is not known; there are {', '.join(RECIPES)}, or leave it out")
    values = {name: value for name, value in RECIPES[recipe](info).items() if not gave(name)}
    if gave("replay_rows") and not spec.replay_rows:
        values.pop("replay", None)
    return replace(spec, **values)


def donor_violations(request: JobRequest, row_stacks: Iterable[tuple[StackItem, ...]]) -> Iterable[FieldViolation]:
    """A style that was never near another adapter does not hold on top of one, so its recipe asks for donors."""
    if request.recipe == STYLE and not request.on_top_of and not any(row_stacks):
        yield FieldViolation(
            "on_top_of",
            "is empty, but the recipe style trains over frozen donors, so that the style holds on top of adapters that"
            " it never saw: name several, most of them at weight 1.3, and a turn over nothing, such as"
            " [{'pine': 1.3}, ['summit'], []], here or in the rows; [[]] trains over nothing all the same",
        )
