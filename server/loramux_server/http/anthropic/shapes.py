"""Anthropic's answers by type, as the clients read them and ``/openapi.json`` tells them."""

from __future__ import annotations

from typing import Any, Literal

from typing_extensions import TypedDict

StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use", "model_context_window_exceeded"]


class AnsweredText(TypedDict):
    """A text."""

    type: Literal["text"]
    text: str
    citations: None


class AnsweredThinking(TypedDict):
    """Thoughts; the signature is empty."""

    type: Literal["thinking"]
    thinking: str
    signature: str


class DirectCaller(TypedDict):
    """The model itself."""

    type: Literal["direct"]


class AnsweredToolUse(TypedDict):
    """A call of a tool."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]
    caller: DirectCaller


AnsweredBlock = AnsweredText | AnsweredThinking | AnsweredToolUse


class DeltaUsage(TypedDict):
    """Tokens so far: ``input_tokens`` are those that the prefix cache did not have."""

    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int
    output_tokens_details: None
    server_tool_use: None


class MessageUsage(DeltaUsage):
    """Tokens of a request."""

    cache_creation: None
    inference_geo: None
    service_tier: Literal["standard"]


class Ending(TypedDict):
    """Why an answer ended."""

    stop_reason: StopReason | None
    stop_sequence: str | None
    stop_details: None
    container: None


class AnsweredMessages(Ending):
    """The assistant's turn."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[AnsweredBlock]
    usage: MessageUsage


class MessageStart(TypedDict):
    """The first event: the message without content."""

    type: Literal["message_start"]
    message: AnsweredMessages


class BlockStart(TypedDict):
    """A block begins, empty."""

    type: Literal["content_block_start"]
    index: int
    content_block: AnsweredBlock


class TextDelta(TypedDict):
    """More text."""

    type: Literal["text_delta"]
    text: str


class ThinkingDelta(TypedDict):
    """More thoughts."""

    type: Literal["thinking_delta"]
    thinking: str


class SignatureDelta(TypedDict):
    """The signature of thoughts, which is empty."""

    type: Literal["signature_delta"]
    signature: str


class InputJsonDelta(TypedDict):
    """Input of a tool, as JSON in a text."""

    type: Literal["input_json_delta"]
    partial_json: str


class BlockDelta(TypedDict):
    """More of a block."""

    type: Literal["content_block_delta"]
    index: int
    delta: TextDelta | ThinkingDelta | SignatureDelta | InputJsonDelta


class BlockStop(TypedDict):
    """A block is whole."""

    type: Literal["content_block_stop"]
    index: int


class MessageDelta(TypedDict):
    """Why the message ended, and what it took."""

    type: Literal["message_delta"]
    delta: Ending
    usage: DeltaUsage


class MessageStop(TypedDict):
    """The last event."""

    type: Literal["message_stop"]


class TokenCount(TypedDict):
    """Tokens of a prompt."""

    input_tokens: int


class MessagesErrorBody(TypedDict):
    """What went wrong."""

    type: str
    message: str


class MessagesError(TypedDict):
    """Every refusal and failure of Anthropic's API."""

    type: Literal["error"]
    error: MessagesErrorBody
    request_id: str


MessageEvent = MessageStart | BlockStart | BlockDelta | BlockStop | MessageDelta | MessageStop | MessagesError


class ModelInfo(TypedDict):
    """The base, an adapter or an alias, as Anthropic's clients read it."""

    type: Literal["model"]
    id: str
    display_name: str
    created_at: str
    lifecycle: Literal["active"]
    max_input_tokens: int
    max_tokens: int
    capabilities: None


class ModelPage(TypedDict):
    """All models that a key may use, as Anthropic's clients read them."""

    data: list[ModelInfo]
    has_more: Literal[False]
    first_id: str | None
    last_id: str | None
