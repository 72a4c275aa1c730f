"""Chat templates: the model's Jinja template, in a sandbox, with a cap on time and size.

A template comes with the base model that the operator chose; callers and adapters can never bring one.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import jinja2
import jinja2.defaults
import jinja2.ext
from jinja2 import nodes

from ...core.errors import Code, Error, invalid_field
from .template_sandbox import DEADLINE, TURNS, Exceeded, TemplateSandbox
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
_KEEP_STATE = frozenset(("joiner", "cycler", "lipsum"))
"""Globals of Jinja whose values change from call to call."""


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
        environment = TemplateSandbox()
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
        except Exceeded as error:
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
                    with suppress(Exceeded, *_TEMPLATE_FAILURES):
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
            DEADLINE: deadline,
            TURNS: turns,
        }
        for chunk in template.generate(variables):
            chunks.append(chunk)
            size += len(chunk)
            if turns is not None:
                turns.written = size
            if size > self._max_chars:
                raise Exceeded(f"wrote more than {self._max_chars} characters")
            if time.monotonic() > deadline:
                raise Exceeded(f"took longer than {self._max_seconds:g} s")
        return "".join(chunks)


@dataclass(frozen=True, slots=True)
class _Given:
    """What a template is given beside the messages."""

    ask: bool
    tools: Sequence[Mapping[str, Any]] | None
    chat_template_kwargs: Mapping[str, Any] | None


def _present(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [{k: v for k, v in message.items() if v is not None} for message in messages]


def _compile(environment: TemplateSandbox, source: str) -> jinja2.Template:
    try:
        return environment.from_string(source)
    except (jinja2.TemplateError, RecursionError) as error:
        raise Error(
            Code.FAILED_PRECONDITION,
            f"the base model's chat template does not compile: {error or type(error).__name__}",
            reason="CHAT_TEMPLATE_BROKEN",
        ) from error


def _keeps_state(environment: TemplateSandbox, source: str) -> bool:
    return any(name.name in _KEEP_STATE for name in environment.parse(source).find_all(nodes.Name))


def _literals(environment: TemplateSandbox, source: str) -> Iterator[str]:
    tree = environment.parse(source)
    for data in tree.find_all(nodes.TemplateData):
        yield data.data
    for constant in tree.find_all(nodes.Const):
        if isinstance(constant.value, str):
            yield constant.value
