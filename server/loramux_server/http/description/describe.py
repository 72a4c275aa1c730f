"""What an operation takes and gives, said beside the handler that does it. ``/openapi.json`` is made of it.

    @describe(body=ChatRequest, answer=ChatCompletion, events=ChatCompletionChunk)
    async def create(self, exchange: Exchange) -> None: ...

The summary is the handler's docstring; path and scope come from the two tables of methods.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from ..exchanges.exchange import JSON_TYPE

H = TypeVar("H", bound=Callable[..., Any])

_SHAPE = "__loramux_shape__"


@dataclass(frozen=True, slots=True)
class Shape:
    """What an operation takes and gives. Types are those that pydantic knows: models, typed dictionaries, unions."""

    body: Any = None
    """The JSON that it takes; None: it takes no body."""
    form: Any = None
    """The parts of the form that it takes, as a model; a part of ``bytes`` is a file."""
    query: Any = None
    """A model of its query's parameters."""
    headers: tuple[str, ...] = ()
    """Headers that it reads beside those that every operation reads."""
    answer: Any = None
    """The JSON that it gives."""
    events: Any = None
    """Each of the server-sent events that it can give instead."""
    media: str = JSON_TYPE
    """Type of an answer that is not JSON: bytes, unless ``answer`` says otherwise."""
    status: int = 200
    errors: tuple[int, ...] = ()
    """Statuses with an answer of the type ``answer`` that are no success."""
    error: Any = None
    """The JSON of its refusals; None: OpenAI's error object."""


def describe(**shape: Any) -> Callable[[H], H]:
    """Say what a handler takes and gives: the fields of :class:`Shape`."""

    def add(handler: H) -> H:
        setattr(handler, _SHAPE, Shape(**shape))
        return handler

    return add


def shape_of(handler: Callable[..., Any]) -> Shape:
    """What ``describe`` said. Raises LookupError for a handler of which nothing was said."""
    shape: Shape | None = getattr(handler, _SHAPE, None)
    if shape is None:
        raise LookupError(
            f"{handler.__qualname__} does not say what it takes and gives: write @describe(body=..., answer=...) of"
            " http/description/describe.py above it"
        )
    return shape
