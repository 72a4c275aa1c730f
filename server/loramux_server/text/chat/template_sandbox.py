"""The Jinja sandbox that chat templates run in: what they find there, and what watches over time and size.

It offers what templates on the hub are written for (block trimming, ``break`` and ``continue``, ``tojson`` without
HTML escapes, ``raise_exception``, ``strftime_now``, the ``generation`` block).
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any, NoReturn

import jinja2
import jinja2.ext
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from .turns import Turns, turns_of

DEADLINE = "loramux_deadline"
TURNS = "loramux_turns"
"""Variables of a rendering: when it must end, and the turns that it is to be cut into."""
_LOOP_SO_FAR = frozenset(("index", "index0", "first", "previtem", "cycle", "changed", "depth", "depth0"))
"""What ``loop`` knows without looking at the items to come."""
_MAX_REPEAT = 1_000_000
_MAX_POWER = 64


class Exceeded(Exception):
    """A rendering went over its time or size."""


class _GenerationBlock(jinja2.ext.Extension):
    """Lets ``{% generation %}`` blocks through unchanged: what is trained is found without them."""

    tags = {"generation"}  # noqa: RUF012 - the base class declares it so

    def parse(self, parser: Parser) -> list[nodes.Node]:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return [nodes.Scope(body).set_lineno(line)]


class TemplateSandbox(ImmutableSandboxedEnvironment):
    """The sandbox, with every loop watching the deadline of its rendering."""

    intercepted_binops = frozenset(["*", "**"])

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, "jinja2.ext.loopcontrols"])
        self.filters["tojson"] = _tojson
        self.filters["loramux_watched"] = _Watched
        self.filters["loramux_whole_loop"] = _whole_loop
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = _strftime_now
        self.globals["namespace"] = _namespace
        self.globals["dict"] = _Dict()

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        return _Watching().visit(super()._parse(source, name, filename))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Multiply and raise to a power, but never into something huge."""
        if operator == "**":
            too_large = isinstance(right, int | float) and abs(right) > _MAX_POWER
        else:
            sized, count = (left, right) if hasattr(left, "__len__") else (right, left)
            too_large = hasattr(sized, "__len__") and isinstance(count, int) and len(sized) * count > _MAX_REPEAT
        if too_large:
            raise SecurityError(f"the template makes too large a value with {operator}")
        return super().call_binop(context, operator, left, right)


class _Watching(NodeTransformer):
    """Puts the watches into a template: over what loops run, and what they ask of items to come."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        self.generic_visit(node)
        node.iter = _filtered(node.iter, "loramux_watched")
        return node

    def visit_Getattr(self, node: nodes.Getattr) -> nodes.Node:
        known = isinstance(node.node, nodes.Name) and node.node.name == "loop" and node.attr in _LOOP_SO_FAR
        return node if known else self.generic_visit(node)

    def visit_Name(self, node: nodes.Name) -> nodes.Expr:
        return _filtered(node, "loramux_whole_loop") if node.name == "loop" and node.ctx == "load" else node


def _filtered(node: nodes.Node, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


@jinja2.pass_context
class _Watched:
    """An iterator over what a loop of a template runs over."""

    def __init__(self, context: jinja2.runtime.Context, iterable: Iterable[Any]) -> None:
        self.over = iterable
        self._deadline = context.get(DEADLINE, float("inf"))
        self._items = iter(iterable)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if time.monotonic() > self._deadline:
            raise Exceeded("took too long")
        return next(self._items)


@jinja2.pass_context
def _whole_loop(context: jinja2.runtime.Context, loop: Any) -> Any:
    """The ``loop`` of a template, noting that a loop over the messages looks ahead with it."""
    turns: Turns | None = context.get(TURNS)
    over = getattr(getattr(loop, "_iterable", None), "over", None)
    if turns is not None and (over is None or turns_of(over) is not None):
        turns.ahead()
    return loop


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: object) -> NoReturn:
    raise jinja2.TemplateError(str(message))


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)  # noqa: DTZ005 - local time, as templates expect


@jinja2.pass_context
def _namespace(context: jinja2.runtime.Context, *args: Any, **kwargs: Any) -> _Namespace:
    made = _Namespace(*args, **kwargs)
    object.__setattr__(made, "turns", context.get(TURNS))
    return made


class _Namespace(jinja2.utils.Namespace):
    """A namespace without underscore names, so that nothing of Python's shows through it."""

    def __getattribute__(self, name: str) -> Any:
        turns: Turns | None = object.__getattribute__(self, "turns")
        if turns is not None and turns.end is not None:  # what is kept there tells how many messages there were
            turns.ahead()
        return super().__getattribute__(name)

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise SecurityError(f"a chat template may not set {name!r} on a namespace")
        super().__setitem__(name, value)


class _Dict:
    """``dict(a=1)`` for templates, without the class's own attributes."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)
