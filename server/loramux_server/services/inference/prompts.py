"""From a prompt or a conversation to token ids, with the checks that need the tokenizer."""

from __future__ import annotations

from ...core.errors import FieldViolation, invalid, invalid_field
from ...core.types import Grammar
from ...text import TextTokenizer
from ...text.answers.forced_calls import ToolMode, forced_calls
from ...text.answers.tool_calls import MARKS, tool_format
from ...text.chat.conversation import read_message, read_template_kwargs, read_tools
from ..common.checks import context_violation, violations_to
from .types import Asked, GenerateRequest


def encode_prompt(text: TextTokenizer, request: Asked) -> tuple[list[int], str]:
    """Ids as the model sees them, and the text that they are of.

    Plain computation: call it off the event loop. Raises INVALID_ARGUMENT.
    """
    if request.prompt is not None:
        ids, shown = text.encode(request.prompt), request.prompt
    else:
        rendered = _rendered(text, request)
        ids, shown = text.encode_rendered(rendered), text.plain(rendered)
    if not ids:
        raise invalid_field(prompt_field(request.prompt), "has no tokens; give some text")
    return ids, shown


def _rendered(text: TextTokenizer, request: Asked) -> str:
    """A conversation through the chat template, read by the rules of training rows."""
    found: list[FieldViolation] = []
    report = violations_to(found)
    messages = [read_message(m.fields, f"messages[{i}]", report) for i, m in enumerate(request.messages)]
    tools = read_tools(request.tools or None, "tools", report)
    kwargs = read_template_kwargs(request.chat_template_kwargs or None, "chat_template_kwargs", report)
    if found:
        raise invalid(found)
    return text.render_chat(
        messages,
        continue_final_message=request.continue_final_message,
        tools=tools,
        chat_template_kwargs=kwargs,
    )


def required_calls(text: TextTokenizer, request: GenerateRequest, max_bytes: int) -> Grammar | None:
    """The grammar of the tool calls that a request requires; None: it requires none.

    Plain computation: call it off the event loop, after :func:`encode_prompt`. Raises INVALID_ARGUMENT.
    """
    if request.tool_choice.mode is not ToolMode.REQUIRED:
        return None
    found: list[FieldViolation] = []
    tools = read_tools(request.tools, "tools", violations_to(found)) or ()
    if found or not tools:
        raise invalid(found or [FieldViolation("tools", "is empty, and a call is required")])
    format = None if text.chat_template is None else tool_format(text.chat_template.literals)
    mark = MARKS[format] if format is not None else ""
    mark_id = next((id for id in text.special_ids if text.spelling(id) == mark), None)
    return forced_calls(request.tool_choice, tools, format, max_bytes=max_bytes, mark_id=mark_id)


def check_context(prompt: str | None, prompt_tokens: int, max_context: int) -> None:
    """Raise INVALID_ARGUMENT unless a prompt leaves room for a new token."""
    violation = context_violation(prompt_field(prompt), prompt_tokens, max_context)
    if violation is not None:
        raise invalid([violation], reason="PROMPT_TOO_LONG")


def prompt_field(prompt: str | None) -> str:
    """The field that the caller filled."""
    return "messages" if prompt is None else "prompt"
