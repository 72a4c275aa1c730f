"""Parts of an answer's text: thoughts, tool calls and what is neither, as the base's chat template marks them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

from ...core.types import Chunk, Message
from ...services.availability import Availability
from ...services.inference.types import GenerateRequest, TokenizeRequest
from ...text.answers.forced_calls import ToolMode
from ...text.answers.reasoning import OPEN, ReasoningReader, Thought, thinks
from ...text.answers.tool_calls import ToolCall, ToolCallReader, ToolFormat, tool_format

Part: TypeAlias = str | Thought | ToolCall


@dataclass(frozen=True, slots=True)
class AnswerFormat:
    """What the answers to a request may hold beside text."""

    tools: ToolFormat | None = None
    """None: calls are not looked for."""
    named: bool = False
    """Whether the request names the tool that must be called."""
    reasoning: bool = False
    opened: bool = False
    """Whether the prompt ends inside the thoughts."""


async def answer_format(availability: Availability, request: GenerateRequest) -> AnswerFormat:
    """The format of the answers to ``request``. Raises as tokenising does."""
    template = availability.open_context().text.chat_template
    if template is None:
        return AnswerFormat()
    choice = request.tool_choice
    required = choice.mode is ToolMode.REQUIRED
    calls = bool(request.tools) and choice.mode is not ToolMode.NONE and (required or request.response_format is None)
    reasoning = thinks(template.literals) and not request.continue_final_message and not required
    return AnswerFormat(
        tools=tool_format(template.literals) if calls else None,
        named=bool(choice.name),
        reasoning=reasoning,
        opened=reasoning and await _opens_thoughts(availability, request),
    )


async def _opens_thoughts(availability: Availability, request: GenerateRequest) -> bool:
    """Whether the template's opening of an assistant's turn has the opening mark at its end.

    Asked of the service, which checks the template's arguments, and renders off the loop and in time.
    """
    probe = TokenizeRequest(
        messages=(Message("user", "x"),),
        chat_template_kwargs=request.chat_template_kwargs,
        deadline=request.deadline,
    )
    tokens = await availability.open().generation.tokenize(probe)
    return tokens.text.rstrip().endswith(OPEN)


class PartReader:
    """Takes the chunks of one choice; gives their parts in order, each as soon as it is certain."""

    def __init__(self, format: AnswerFormat) -> None:
        self._reasoning = ReasoningReader(format.opened) if format.reasoning else None
        self._tools = ToolCallReader(format.tools) if format.tools is not None else None

    def push(self, chunk: Chunk) -> Iterator[Part]:
        """The parts that a chunk makes; there may be none yet."""
        done = chunk.finish_reason is not None
        if self._reasoning is None:
            yield from self._called([chunk.text] if chunk.text else [], done)
            return
        parts = [*self._reasoning.push(chunk.text), *(self._reasoning.finish() if done else ())]
        yield from (part for part in parts if isinstance(part, Thought))
        yield from self._called([part for part in parts if isinstance(part, str)], done)

    def _called(self, texts: list[str], done: bool) -> Iterator[str | ToolCall]:
        if self._tools is None:
            yield from texts
            return
        for text in texts:
            yield from self._tools.push(text)
        if done:
            yield from self._tools.finish()
