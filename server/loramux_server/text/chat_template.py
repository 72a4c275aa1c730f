"""Chat templates: the model's Jinja template, in a sandbox, with a cap on time and size.

The environment offers what templates on the hub are written for (block trimming, ``break`` and ``continue``,
``tojson`` without HTML escapes, ``raise_exception``, ``strftime_now``, the ``generation`` block). A template comes
with the base model that the operator chose; callers and adapters can never bring one.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, NoReturn

import jinja2
import jinja2.defaults
import jinja2.ext
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from ..core.errors import Code, Error, invalid_field
from .turns import Turns, TurnTexts, turns_of

MAX_CHARS = 8 * 1024 * 1024
"""Longest rendered conversation, in characters."""
MAX_SECONDS = 5.0
"""Longest time that one rendering may take."""
_TEMPLATE_FAILURES = (
    jinja2.TemplateError,
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RecursionError,
)
_RESERVED = frozenset(
    {
        *("messages", "tools", "documents", "add_generation_prompt", "continue_final_message", "chat_template"),
        *("conversation", "tokenize", "padding", "truncation", "max_length", "return_tensors", "return_dict"),
        *("return_assistant_tokens_mask", "tokenizer_kwargs"),
        *("raise_exception", "strftime_now", *jinja2.defaults.DEFAULT_NAMESPACE),
    }
)
"""Arguments of transformers' ``apply_chat_template``, and what templates find there by themselves."""
_DEADLINE = "loramux_deadline"
_TURNS = "loramux_turns"
_LOOP_SO_FAR = frozenset(("index", "index0", "first", "previtem", "cycle", "changed", "depth", "depth0"))
"""What ``loop`` knows without looking at the items to come."""
_KEEP_STATE = frozenset(("joiner", "cycler", "lipsum"))
"""Globals of Jinja whose values change from call to call."""
_MAX_REPEAT = 1_000_000
_MAX_POWER = 64


def is_reserved(name: str) -> bool:
    """Whether the server itself sets a variable of templates, so that no caller may."""
    return name in _RESERVED or name.endswith("_token") or name.startswith("loramux_")


class ChatTemplate:
    """A compiled chat template.

    ``variables`` are what every rendering sees besides the messages (``bos_token``, ``eos_token``, ...);
    ``tools_source`` is the template used instead when a conversation has tools.

    Raises FAILED_PRECONDITION when the template does not compile. Rendering is safe from several threads.
    """

    def __init__(
        self,
        source: str,
        variables: Mapping[str, str] | None = None,
        *,
        tools_source: str | None = None,
        max_chars: int = MAX_CHARS,
        max_seconds: float = MAX_SECONDS,
    ) -> None:
        self.source = source
        self._variables = dict(variables or {})
        self._max_chars = max_chars
        self._max_seconds = max_seconds
        environment = _Environment()
        self._template = _compile(environment, source)
        self._tools_template = _compile(environment, tools_source) if tools_source else self._template
        sources = ((source, self._template), (tools_source or source, self._tools_template))
        self._stateful = [each for text, each in sources if _keeps_state(environment, text)]
        self.literals = "\0".join(
            text for each in (source, tools_source) if each for text in _literals(environment, each)
        )
        """All text that the template itself may write, in no order, separated by NUL."""

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """The conversation as text. Keys whose value is None are left out, as templates expect.

        ``chat_template_kwargs`` are variables of the template, none of them reserved. Raises INVALID_ARGUMENT when the
        template refuses the conversation, takes too long or writes too much: on ``chat_template_kwargs`` or ``tools``
        where it would take the conversation without them, else on ``messages``.
        """
        return self._write(_present(messages), _Given(add_generation_prompt, tools, chat_template_kwargs))

    def render_turns(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> TurnTexts | None:
        """The conversation cut into its turns; None when the template does not write it turn after turn.

        It does not when what it writes of a turn depends on later ones (it drops reasoning of earlier turns, say), or
        when it refuses the conversation. Costs two renderings, however many turns there are.
        """
        if (self._tools_template if tools else self._template) in self._stateful:
            return None
        found = []
        for ask in (True, False):
            turns = Turns(_present(messages))
            try:
                text = self._write(turns, _Given(ask, tools, chat_template_kwargs))
            except Error as error:
                if error.reason == "CHAT_TEMPLATE_LIMIT":
                    raise
                return None
            if turns.looked_ahead or turns.end is None:
                return None
            found.append((text[: turns.end], turns.starts, text[turns.end :]))
        (said, starts, ask_text), (said_without, starts_without, end) = found
        if (said, starts) != (said_without, starts_without):
            return None
        cut = tuple(said[a:b] for a, b in itertools.pairwise([*starts, len(said)]))
        # Text that a template collects before it writes any belongs to no turn.
        return TurnTexts(cut, ask_text, end) if all(cut) else None

    def _write(self, messages: Sequence[Mapping[str, Any]], given: _Given) -> str:
        try:
            return self._text(messages, given)
        except _Exceeded as error:
            raise invalid_field(
                "messages", f"the chat template {error}; shorten the conversation", reason="CHAT_TEMPLATE_LIMIT"
            ) from None
        except _TEMPLATE_FAILURES as error:
            # A template runs like code: what it trips over is about this conversation, not a defect of the server.
            raise invalid_field(
                self._refused(messages, given),
                f"the model's chat template refuses this conversation: {str(error)[:200] or type(error).__name__}",
                reason="CHAT_TEMPLATE_REFUSED",
            ) from error

    def _refused(self, messages: Sequence[Mapping[str, Any]], given: _Given) -> str:
        """The field that a template trips over: the one without which it takes the conversation, else ``messages``."""
        if turns_of(messages) is None:
            for field in ("chat_template_kwargs", "tools"):
                fewer: dict[str, Any] = {field: None}
                if getattr(given, field):
                    with suppress(_Exceeded, *_TEMPLATE_FAILURES):
                        self._text(messages, replace(given, **fewer))
                        return field
        return "messages"

    def _text(self, messages: Sequence[Mapping[str, Any]], given: _Given) -> str:
        """What the template writes, within its time and size."""
        template = self._tools_template if given.tools else self._template
        turns = turns_of(messages)
        chunks: list[str] = []
        size = 0
        deadline = time.monotonic() + self._max_seconds
        variables = {
            **(given.chat_template_kwargs or {}),
            **self._variables,
            "messages": messages,
            "tools": list(given.tools) if given.tools else None,
            "documents": None,
            "add_generation_prompt": given.ask,
            _DEADLINE: deadline,
            _TURNS: turns,
        }
        for chunk in template.generate(variables):
            chunks.append(chunk)
            size += len(chunk)
            if turns is not None:
                turns.written = size
            if size > self._max_chars:
                raise _Exceeded(f"wrote more than {self._max_chars} characters")
            if time.monotonic() > deadline:
                raise _Exceeded(f"took longer than {self._max_seconds:g} s")
        return "".join(chunks)


@dataclass(frozen=True, slots=True)
class _Given:
    """What a template is given beside the messages."""

    ask: bool
    tools: Sequence[Mapping[str, Any]] | None
    chat_template_kwargs: Mapping[str, Any] | None


def _present(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [{k: v for k, v in message.items() if v is not None} for message in messages]


class _Exceeded(Exception):
    """A rendering went over its time or size."""


class _GenerationBlock(jinja2.ext.Extension):
    """Lets ``{% generation %}`` blocks through unchanged: what is trained is found without them."""

    tags = {"generation"}  # noqa: RUF012 - the base class declares it so

    def parse(self, parser: Parser) -> list[nodes.Node]:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return [nodes.Scope(body).set_lineno(line)]


class _Environment(ImmutableSandboxedEnvironment):
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
        self._deadline = context.get(_DEADLINE, float("inf"))
        self._items = iter(iterable)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if time.monotonic() > self._deadline:
            raise _Exceeded("took too long")
        return next(self._items)


@jinja2.pass_context
def _whole_loop(context: jinja2.runtime.Context, loop: Any) -> Any:
    """The ``loop`` of a template, noting that a loop over the messages looks ahead with it."""
    turns: Turns | None = context.get(_TURNS)
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
    object.__setattr__(made, "turns", context.get(_TURNS))
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


def _compile(environment: _Environment, source: str) -> jinja2.Template:
    try:
        return environment.from_string(source)
    except (jinja2.TemplateError, RecursionError) as error:
        raise Error(
            Code.FAILED_PRECONDITION,
            f"the base model's chat template does not compile: {error or type(error).__name__}",
            reason="CHAT_TEMPLATE_BROKEN",
        ) from error


def _keeps_state(environment: _Environment, source: str) -> bool:
    return any(name.name in _KEEP_STATE for name in environment.parse(source).find_all(nodes.Name))


def _literals(environment: _Environment, source: str) -> Iterator[str]:
    tree = environment.parse(source)
    for data in tree.find_all(nodes.TemplateData):
        yield data.data
    for constant in tree.find_all(nodes.Const):
        if isinstance(constant.value, str):
            yield constant.value
