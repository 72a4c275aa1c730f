"""The spellings of a stack of adapters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from ...errors import invalid
from ...types import StackItem
from ...v1 import common_pb2
from .fields import assign, items

Entry: TypeAlias = "str | tuple[str, float] | StackItem"
Adapters: TypeAlias = "str | Mapping[str, float] | Sequence[Entry]"
"""A stack: ``["acme", ("formal", 0.5)]`` or ``{"acme": 1.0, "formal": 0.5}``; names may be ``name@version``."""


def stack(adapters: Adapters | None, field: str = "adapters") -> list[common_pb2.StackEntry]:
    """The entries of one stack, however it is written; None is the base."""
    if adapters is None:
        return []
    entries: Iterable[Any]
    if isinstance(adapters, str):
        entries = [adapters]
    elif isinstance(adapters, Mapping):
        entries = adapters.items()
    else:
        entries = items(field, adapters, "a list of names, a dict of name to weight, or a list of (name, weight)")
    return [_entry(entry, f"{field}[{i}]") for i, entry in enumerate(entries)]


def stacks(on_top_of: Adapters | Sequence[Adapters] | None) -> list[list[common_pb2.StackEntry]]:
    """The stacks underneath a training job: one stack as ``stack`` takes it, or a list of such stacks.

    ``["acme"]`` is one stack; ``[{"pine": 1.3}, ["summit"], []]`` is three, the last one the bare base.
    """
    if not on_top_of:
        return []
    if isinstance(on_top_of, str | Mapping):
        return [stack(on_top_of, "on_top_of[0]")]
    on_top_of = items("on_top_of", on_top_of, "a stack or a list of stacks")
    several = [_is_stack(item) for item in on_top_of]
    if all(several):
        return [stack(item, f"on_top_of[{i}]") for i, item in enumerate(on_top_of)]
    if any(several):
        raise invalid("on_top_of", "mixes names and stacks; write a list of stacks, such as [['acme'], {'pine': 1.3}]")
    return [stack(on_top_of, "on_top_of[0]")]


def _entry(entry: Any, field: str) -> common_pb2.StackEntry:
    if isinstance(entry, StackItem):
        entry = (entry.adapter, entry.weight)
    name, weight = (entry, None) if isinstance(entry, str) else _pair(entry, field)
    message = common_pb2.StackEntry()
    assign(message, {"adapter": name} if weight is None else {"adapter": name, "weight": weight}, f"{field}.")
    return message


def _pair(entry: Any, field: str) -> tuple[Any, Any]:
    if isinstance(entry, tuple | list) and len(entry) == 2:
        return entry[0], entry[1]
    raise invalid(field, "must be a name or (name, weight)")


def _is_stack(item: object) -> bool:
    """Whether an item of ``on_top_of`` is a stack of its own, not an entry such as ``"acme"`` or ``("acme", 1.3)``."""
    if isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], str) and isinstance(item[1], int | float):
        return False
    return isinstance(item, Mapping | list | tuple)
