"""The object of a response and the events of its stream by type, as ``/openapi.json`` tells them."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired, TypeAlias

from pydantic import Field
from typing_extensions import TypedDict

from ..shapes import ContentLogprob

Status = Literal["in_progress", "completed", "incomplete"]


class OutputText(TypedDict):
    """The text of a message."""

    type: Literal["output_text"]
    text: str
    annotations: list[Any]
    logprobs: list[ContentLogprob]


class ReasoningText(TypedDict):
    """The text of thoughts."""

    type: Literal["reasoning_text"]
    text: str


class OutputMessage(TypedDict):
    """What the model says."""

    id: str
    type: Literal["message"]
    status: Status
    role: Literal["assistant"]
    content: list[OutputText]


class OutputReasoning(TypedDict):
    """What the model thinks; nothing is summarised."""

    id: str
    type: Literal["reasoning"]
    status: Status
    summary: list[Any]
    content: list[ReasoningText]


class OutputCall(TypedDict):
    """A call that the model asks for; ``arguments`` is JSON in a text."""

    id: str
    type: Literal["function_call"]
    status: Status
    call_id: str
    name: str
    arguments: str


OutputItem = Annotated[OutputMessage | OutputReasoning | OutputCall, Field(discriminator="type")]


class InputDetails(TypedDict):
    """Of the tokens of a prompt."""

    cached_tokens: int
    cache_write_tokens: int


class OutputDetails(TypedDict):
    """Of the tokens of an answer."""

    reasoning_tokens: int


class ResponseUsage(TypedDict):
    """Tokens of a request."""

    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class ResponseError(TypedDict):
    """Why a response failed."""

    code: str
    message: str


class IncompleteDetails(TypedDict):
    """Why a response is incomplete."""

    reason: Literal["max_output_tokens"]


class Response(TypedDict):
    """A response: what was asked, as it was obeyed, and what is answered."""

    id: str
    object: Literal["response"]
    created_at: int
    completed_at: int | None
    model: str
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    error: ResponseError | None
    incomplete_details: IncompleteDetails | None
    output: list[OutputItem]
    usage: ResponseUsage | None
    instructions: str | None
    tools: list[dict[str, Any]]
    tool_choice: str | dict[str, Any]
    parallel_tool_calls: bool
    text: dict[str, Any]
    temperature: float
    top_p: float
    presence_penalty: float
    frequency_penalty: float
    top_logprobs: int
    max_output_tokens: int | None
    max_tool_calls: int | None
    metadata: dict[str, Any]
    reasoning: dict[str, Any]
    truncation: Literal["disabled"]
    store: Literal[False]
    background: Literal[False]
    previous_response_id: None
    service_tier: Literal["default"]
    user: str | None
    safety_identifier: str | None
    prompt_cache_key: str | None


class InputTokens(TypedDict):
    """Tokens of a prompt."""

    object: Literal["response.input_tokens"]
    input_tokens: int


class _Event(TypedDict):
    sequence_number: int


class ResponseEvent(_Event):
    """The response as it is at its beginning and its end."""

    type: Literal[
        "response.created", "response.in_progress", "response.completed", "response.incomplete", "response.failed"
    ]
    response: Response


class _ItemEvent(_Event):
    output_index: int


class ItemEvent(_ItemEvent):
    """An item begins, or is done."""

    type: Literal["response.output_item.added", "response.output_item.done"]
    item: OutputItem


class PartEvent(_ItemEvent):
    """The part of a text begins, or is done."""

    type: Literal["response.content_part.added", "response.content_part.done"]
    item_id: str
    content_index: int
    part: Annotated[OutputText | ReasoningText, Field(discriminator="type")]


class DeltaEvent(_ItemEvent):
    """More of a text; ``logprobs`` of messages alone."""

    type: Literal["response.output_text.delta", "response.reasoning_text.delta"]
    item_id: str
    content_index: int
    delta: str
    logprobs: NotRequired[list[ContentLogprob]]


class TextEvent(_ItemEvent):
    """A text is done; ``logprobs`` of messages alone."""

    type: Literal["response.output_text.done", "response.reasoning_text.done"]
    item_id: str
    content_index: int
    text: str
    logprobs: NotRequired[list[ContentLogprob]]


class ArgumentsDeltaEvent(_ItemEvent):
    """More of the arguments of a call."""

    type: Literal["response.function_call_arguments.delta"]
    item_id: str
    delta: str


class ArgumentsEvent(_ItemEvent):
    """The arguments of a call are done."""

    type: Literal["response.function_call_arguments.done"]
    item_id: str
    name: str
    arguments: str


AnyEvent: TypeAlias = Annotated[
    ResponseEvent | ItemEvent | PartEvent | DeltaEvent | TextEvent | ArgumentsDeltaEvent | ArgumentsEvent,
    Field(discriminator="type"),
]
