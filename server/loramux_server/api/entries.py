"""How many entries the lists of a request hold: bounded before any of them is looked at.

A message of a few megabytes can hold millions of empty entries. Making our own types of them would take the event loop
half a minute from everybody; what each list may hold is said by the services, and is far below the bound.
"""

from __future__ import annotations

from collections.abc import Mapping

from google.protobuf.message import Message

from ..core.errors import Error, invalid_field

MAX_ENTRIES = 16_384
"""Most entries in all lists and maps of a request together."""


NUMBERS_FOR_ONE = {"loramux.v1.TokenIds.ids": 64}
"""Lists of numbers that are handed on as they are, and how many of these cost as much as an entry."""


def check_entries(request: Message) -> None:
    """Raise INVALID_ARGUMENT, naming the list that is too long. Costs no more than the bound, whatever the request."""
    _left(request, MAX_ENTRIES, "")


def too_many(name: str, count: int) -> Error:
    """The error about a list or map that is too long."""
    return invalid_field(name, f"has {count} entries; the lists of a request may hold {MAX_ENTRIES} together")


def _left(message: Message, budget: int, path: str) -> int:
    """How many more entries there may be."""
    for field, value in message.ListFields():
        name = f"{path}{field.name}"
        if isinstance(value, Message):
            budget = _left(value, budget, f"{name}.")
        elif not isinstance(value, str | bytes | int | float):
            budget -= len(value) // NUMBERS_FOR_ONE.get(field.full_name, 1)
            if budget < 0:
                raise too_many(name, len(value))
            if field.message_type is not None and not isinstance(value, Mapping):
                for number, each in enumerate(value):
                    budget = _left(each, budget, f"{name}[{number}].")
    return budget
