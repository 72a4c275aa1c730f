"""Blocks of which Anthropic's messages are made, by type. What is kept for a cache is taken and ignored."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, StrictBool, StrictStr, Tag
from pydantic_core import PydanticCustomError

from ..bodies.fields import Strict


class Block(Strict):
    """What every block may have."""

    cache_control: dict[str, Any] | None = None
    """Ignored: prompts are cached by themselves."""


class TextBlock(Block):
    """A text."""

    type: Literal["text"]
    text: StrictStr
    citations: list[Any] | None = None
    """Ignored."""


class ThinkingBlock(Block):
    """Thoughts of an earlier answer. Ignored: chat templates have no place for them in turns that are over."""

    type: Literal["thinking"]
    thinking: StrictStr
    signature: StrictStr = ""


class RedactedThinkingBlock(Block):
    """Thoughts that another server has encrypted. Ignored."""

    type: Literal["redacted_thinking"]
    data: StrictStr


class ToolUseBlock(Block):
    """A call that an assistant's turn made."""

    type: Literal["tool_use"]
    id: StrictStr
    name: StrictStr
    input: dict[str, Any]
    caller: dict[str, Any] | None = None
    """Ignored: the model alone calls."""
    toolset_name: None = None


def known(*types: str | None, why: str) -> BeforeValidator:
    """Takes objects of these types alone, and says ``why`` it takes no others."""

    def check(value: Any) -> Any:
        if not isinstance(value, dict):
            raise PydanticCustomError("no_object", "must be an object with its type")
        if (type := value.get("type")) not in types:
            raise PydanticCustomError(
                "unknown_type", "is of type {type}, {why}", {"type": ascii(type)[:60], "why": why}
            )
        return value

    return BeforeValidator(check)


# Tags begin with capitals: so they are no part of a field's path.
TEXT_OR_LIST = Discriminator(lambda value: "Text" if isinstance(value, str) else "List")
_BY_TYPE = Discriminator(lambda value: str(value["type"]).title())

_TEXTS_ALONE = "which is not read here: send blocks of type text"

Texts = Annotated[
    Annotated[StrictStr, Tag("Text")]
    | Annotated[list[Annotated[TextBlock, known("text", why=_TEXTS_ALONE)]], Tag("List")],
    TEXT_OR_LIST,
]
"""A text, or blocks of texts."""


class ToolResultBlock(Block):
    """What a tool answered."""

    type: Literal["tool_result"]
    tool_use_id: StrictStr
    content: Texts = ""
    is_error: StrictBool | None = None
    """Ignored: the text says what went wrong."""
    toolset_name: None = None


ContentBlock = Annotated[
    Annotated[TextBlock, Tag("Text")]
    | Annotated[ThinkingBlock, Tag("Thinking")]
    | Annotated[RedactedThinkingBlock, Tag("Redacted_Thinking")]
    | Annotated[ToolUseBlock, Tag("Tool_Use")]
    | Annotated[ToolResultBlock, Tag("Tool_Result")],
    _BY_TYPE,
    known(
        *("text", "thinking", "redacted_thinking", "tool_use", "tool_result"),
        why="which is not read here: send blocks of type text, tool_use and tool_result",
    ),
]

Content = Annotated[Annotated[StrictStr, Tag("Text")] | Annotated[list[ContentBlock], Tag("List")], TEXT_OR_LIST]
"""A text, or blocks."""
