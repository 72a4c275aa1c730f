"""Checks of requests for inference, before anything is looked up or computed; all bad fields come back at once."""

from __future__ import annotations

from collections.abc import Iterator

from ...core.bounds import (
    MAX_STOP_CHARS,
    MAX_STOPS,
    NOT_UNICODE,
    Bound,
    sampling_violations,
    text_violations,
    too_many,
    utf8_size,
)
from ...core.errors import Error, FieldViolation, invalid
from ...core.types import Grammar
from ...text.answers.forced_calls import ToolMode
from ...text.answers.response_format import parse_format
from ...text.chat.conversation import read_content
from ...text.tokenizer import ROLES
from ..common.checks import shown, stack_violations, violations_to
from ..common.limits import Limits
from .types import Asked, GenerateRequest


def check_generation(request: GenerateRequest, limits: Limits, vocab_size: int) -> Grammar | None:
    """The grammar of a generation request, if it names one.

    Raises INVALID_ARGUMENT with everything that is wrong and can be seen without a tokenizer or the registry.
    """
    found = [
        *prompt_violations(request, limits),
        *stack_violations(request.adapters),
        *sampling_violations(
            request.sampling,
            vocab_size,
            max_tokens=limits.max_new_tokens,
            max_logprobs=limits.max_logprobs,
            max_logit_bias=limits.max_logit_bias,
        ),
        *stop_violations(request.stop),
        *tool_choice_violations(request),
    ]
    found += Bound(1, limits.max_choices).violations("n", request.n)
    grammar = None
    if request.response_format is not None:
        try:
            grammar = parse_format(request.response_format, limits.max_grammar_bytes)
        except Error as error:
            found += error.violations
    if found:
        raise invalid(found)
    return grammar


def prompt_violations(request: Asked, limits: Limits, *, answered: bool = True) -> Iterator[FieldViolation]:
    """A request needs a non-empty prompt or at least one message, not both, within the byte limit.

    JSON in it is not read here. ``answered`` tells whether the request asks for an answer.
    """
    if request.prompt is not None and request.messages:
        yield FieldViolation("prompt", "is given together with messages; give one of the two")
    elif request.prompt is not None:
        yield from text_violations("prompt", request.prompt, limits.max_prompt_bytes)
    elif request.messages:
        yield from message_violations(request, limits)
    else:
        yield FieldViolation("prompt", "is missing; give a prompt or messages")
    if request.prompt is not None:
        for field in ("tools", "chat_template_kwargs", "continue_final_message"):
            if getattr(request, field):
                yield FieldViolation(field, "is for messages; a prompt is continued as it is: leave it out")
    last = request.messages[-1].role if request.messages else ""
    if answered and last == "assistant" and not request.continue_final_message:
        # Whoever sends one hardly ever means that it is closed and a second answer opened, as templates do.
        yield FieldViolation(
            "continue_final_message",
            "is not set, and messages end with an assistant's turn: set it to go on writing that turn, or end with a "
            "turn to be answered",
        )


def tool_choice_violations(request: GenerateRequest) -> Iterator[FieldViolation]:
    """Calls can be required of a chat with tools; a tool is named where calls are required."""
    choice = request.tool_choice
    if choice.name and choice.mode is not ToolMode.REQUIRED:
        yield FieldViolation("tool_choice", "names a tool, which is for required calls")
    if choice.mode is ToolMode.REQUIRED and not request.tools:
        yield FieldViolation("tool_choice", "requires a call, but there are no tools: give tools or leave it out")


def message_violations(request: Asked, limits: Limits) -> Iterator[FieldViolation]:
    """Known roles, valid text, no more messages and bytes than allowed."""
    if len(request.messages) > limits.max_messages:
        yield from too_many("messages", len(request.messages), limits.max_messages, "messages")
        return
    tools = utf8_size(request.tools) or 0
    if tools > limits.max_tools_bytes:
        yield from too_many("tools", tools, limits.max_tools_bytes, "bytes")
        return
    beside = tools + (utf8_size(request.chat_template_kwargs) or 0)
    total = beside
    found: list[FieldViolation] = []
    for i, message in enumerate(request.messages):
        if message.role not in ROLES:
            found.append(
                FieldViolation(
                    f"messages[{i}].role", f"is {shown(message.role)}; it must be one of {', '.join(sorted(ROLES))}"
                )
            )
        content = read_content(message.content, f"messages[{i}].content", violations_to(found))
        said = {**message.fields, "content": content}
        for name in said.keys() - {"role"}:
            size = utf8_size(said[name])
            if size is None:
                found.append(FieldViolation(f"messages[{i}].{name}", NOT_UNICODE))
            total += size or 0
    yield from found
    if total > limits.max_prompt_bytes:
        what = f"hold {total} bytes{', tools included' if beside else ''}"
        yield FieldViolation("messages", f"{what}, at most {limits.max_prompt_bytes} are allowed")


def stop_violations(stop: tuple[str, ...]) -> Iterator[FieldViolation]:
    """Few, short, non-empty stop strings."""
    if len(stop) > MAX_STOPS:
        yield from too_many("stop", len(stop), MAX_STOPS, "strings")
        return
    for i, text in enumerate(stop):
        if utf8_size(text) is None:
            yield FieldViolation(f"stop[{i}]", NOT_UNICODE)
        elif not 1 <= len(text) <= MAX_STOP_CHARS:
            yield FieldViolation(f"stop[{i}]", f"has {len(text)} characters; it must have 1 to {MAX_STOP_CHARS}")
