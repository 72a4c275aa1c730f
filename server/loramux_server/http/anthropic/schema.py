"""The fields of Anthropic's requests by type; their values are checked by the services, as those of every door.

A field that is none is refused by name. What Anthropic documents and changes nothing here is taken and ignored.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, StrictBool, StrictInt, StrictStr

from ..bodies.fields import Adapter, Number, Strict
from .blocks import Content, Texts, known


class Message(Strict):
    """One turn."""

    role: Literal["user", "assistant", "system"]
    content: Content


class Tool(Strict):
    """A tool of the caller's."""

    type: Literal["custom"] | None = None
    name: StrictStr = Field(min_length=1)
    description: StrictStr | None = None
    input_schema: dict[str, Any]
    strict: StrictBool | None = None
    """Ignored: arguments fit the schema where ``tool_choice`` forces a call."""
    input_examples: list[dict[str, Any]] | None = None
    """Ignored, as what follows."""
    allowed_callers: list[StrictStr] | None = None
    cache_control: dict[str, Any] | None = None
    defer_loading: StrictBool | None = None
    eager_input_streaming: StrictBool | None = None


class ToolChoice(Strict):
    """Whether tools are called, and which."""

    type: Literal["auto", "any", "tool", "none"]
    name: StrictStr | None = None
    disable_parallel_tool_use: StrictBool | None = None


class Thinking(Strict):
    """Whether the model thinks before it answers, where the base's chat template leaves that to the request."""

    type: Literal["enabled", "adaptive", "disabled"]
    budget_tokens: StrictInt | None = None
    """Ignored: thoughts count against ``max_tokens`` alone."""
    display: Literal["summarized", "omitted"] | None = None


class JsonFormat(Strict):
    """The schema that an answer must fit."""

    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(Strict):
    """The shape of an answer."""

    format: JsonFormat | None = None
    effort: StrictStr | None = None
    """Ignored."""


class Metadata(Strict):
    """Ignored."""

    user_id: StrictStr | None = None


class CountRequest(Strict):
    """``POST /v1/messages/count_tokens``."""

    model: StrictStr
    messages: list[Message] = Field(min_length=1)
    system: Texts = ""
    tools: (
        list[
            Annotated[
                Tool, known("custom", None, why="which Anthropic runs: describe a tool of your own, without type")
            ]
        ]
        | None
    ) = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    output_format: JsonFormat | None = None
    adapters: list[Adapter] = Field(default_factory=list)
    chat_template_kwargs: dict[str, Any] | None = None
    cache_control: dict[str, Any] | None = None
    """Ignored, as what follows."""
    context_management: dict[str, Any] | None = None
    speed: StrictStr | None = None
    user_profile_id: StrictStr | None = None


class MessageRequest(CountRequest):
    """``POST /v1/messages``."""

    max_tokens: StrictInt
    stop_sequences: list[StrictStr] | None = None
    stream: StrictBool | None = False
    temperature: Number | None = None
    top_p: Number | None = None
    top_k: StrictInt | None = None
    min_p: Number | None = None
    seed: StrictInt | None = None
    metadata: Metadata | None = None
    service_tier: StrictStr | None = None
    """Ignored, as what follows."""
    diagnostics: dict[str, Any] | None = None
