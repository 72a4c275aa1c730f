"""The fields of ``POST /v1/responses`` by type; what needs a kept answer, or anything but text, is refused by name."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, StrictBool, StrictInt, StrictStr, Tag
from pydantic_core import PydanticCustomError

from ...bodies.fields import Adapter, Number, Strict
from ..schema import Ignored, JsonObjectFormat, StreamOptions, TextFormat

LOGPROBS = "message.output_text.logprobs"
Include = Literal[
    "message.output_text.logprobs",
    "reasoning.encrypted_content",
    "message.input_image.image_url",
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
]
"""What OpenAI can add to an answer. All but the log-probabilities is of things that no answer has here."""
MOST_ITEMS = 10_000
"""Items of a conversation that are read; the services take fewer messages."""
_SEND_AGAIN = "no answer is kept here, so send all items of the conversation as input"


def _must(words: str, *values: object) -> BeforeValidator:
    """Takes these values and None; ``words`` say what to do instead of any other."""

    def check(value: Any) -> Any:
        if value is not None and value not in values:
            raise PydanticCustomError("refused", "{words}", {"words": words})
        return value

    return BeforeValidator(check)


def _of_type(words: str, *kinds: str, default: str = "") -> BeforeValidator:
    """Takes objects of these types; ``words`` say what to do about any other."""

    def check(value: Any) -> Any:
        kind = value.get("type", default) if isinstance(value, dict) else None
        if not isinstance(kind, str):
            raise PydanticCustomError("untyped", "must be an object with a type")
        if kind not in kinds:
            context = {"kind": repr(kind[:40]), "words": words}
            raise PydanticCustomError("refused", "has the type {kind}; {words}", context)
        return {**value, "type": kind}

    return BeforeValidator(check)


_BY_TYPE = Discriminator(lambda value: f"<{value['type'] if isinstance(value, dict) else value.type}>")
"""Alternatives by their type, tagged in a way that no path of a field shows."""


def _as_item(value: Any) -> Any:
    return [{"type": "message", "role": "user", "content": value}] if isinstance(value, str) else value


def _as_part(value: Any) -> Any:
    return [{"type": "input_text", "text": value}] if isinstance(value, str) else value


class TextPart(Strict):
    """A text of an item."""

    type: StrictStr
    text: StrictStr
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None


# Items are looked at up to the first bad one: each costs Python's time, and a body has room for millions.
Texts = Annotated[
    list[
        Annotated[
            TextPart,
            _of_type("only input_text and output_text can be read here: leave it out", "input_text", "output_text"),
        ]
    ],
    Field(fail_fast=True),
    BeforeValidator(_as_part),
]


class MessageItem(Strict):
    """A turn."""

    type: Literal["message"]
    role: StrictStr
    content: Texts
    id: StrictStr | None = None
    status: StrictStr | None = None
    phase: StrictStr | None = None


class CallItem(Strict):
    """A call that an earlier answer made, its arguments JSON as text."""

    type: Literal["function_call"]
    call_id: StrictStr
    name: StrictStr
    arguments: StrictStr
    id: StrictStr | None = None
    status: StrictStr | None = None


class OutputItem(Strict):
    """What a call gave."""

    type: Literal["function_call_output"]
    call_id: StrictStr
    output: Texts
    id: StrictStr | None = None
    status: StrictStr | None = None


class ReasoningItem(Strict):
    """What an earlier answer thought; ignored, as templates do not show it again."""

    type: Literal["reasoning"]
    id: StrictStr | None = None
    summary: list[Any] | None = None
    content: list[Any] | None = None
    encrypted_content: StrictStr | None = None
    status: StrictStr | None = None


Item = Annotated[
    Annotated[MessageItem, Tag("<message>")]
    | Annotated[CallItem, Tag("<function_call>")]
    | Annotated[OutputItem, Tag("<function_call_output>")]
    | Annotated[ReasoningItem, Tag("<reasoning>")],
    _BY_TYPE,
    _of_type(
        "items are messages, function calls, their outputs, and reasoning",
        *("message", "function_call", "function_call_output", "reasoning"),
        default="message",
    ),
]


class FunctionTool(Strict):
    """A function that the model may ask to be called."""

    type: Literal["function"]
    name: StrictStr
    description: StrictStr | None = None
    parameters: dict[str, Any] | None = None
    strict: StrictBool | None = None


Tool = Annotated[FunctionTool, _of_type("only tools of the type function can be called here: leave it out", "function")]


class NamedChoice(Strict):
    """The function that must be called."""

    type: Literal["function"]
    name: StrictStr


class JsonSchemaFormat(Strict):
    """A JSON document that fits a schema."""

    type: Literal["json_schema"]
    name: StrictStr
    schema_: dict[str, Any] = Field(alias="schema")
    description: StrictStr | None = None
    strict: StrictBool | None = None


Format = Annotated[
    Annotated[TextFormat, Tag("<text>")]
    | Annotated[JsonObjectFormat, Tag("<json_object>")]
    | Annotated[JsonSchemaFormat, Tag("<json_schema>")],
    _BY_TYPE,
    _of_type("use text, json_object or json_schema", "text", "json_object", "json_schema"),
]


class TextConfig(Strict):
    """What the text of the answer must be. ``verbosity`` is ignored."""

    format: Format | None = None
    verbosity: StrictStr | None = None


class ResponseRequest(Ignored):
    """``POST /v1/responses``."""

    model: StrictStr
    input: Annotated[list[Item], Field(fail_fast=True, max_length=MOST_ITEMS), BeforeValidator(_as_item)]
    instructions: StrictStr | None = None
    tools: Annotated[list[Tool], Field(fail_fast=True)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedChoice | None = None
    text: TextConfig | None = None
    include: Annotated[list[Include], Field(fail_fast=True)] | None = None
    top_logprobs: StrictInt | None = None
    max_output_tokens: StrictInt | None = None
    temperature: Number | None = None
    top_p: Number | None = None
    stream: StrictBool | None = False
    stream_options: StreamOptions | None = None
    parallel_tool_calls: StrictBool | None = None

    store: Annotated[Literal[False] | None, _must(f"must be false or left out: {_SEND_AGAIN}", False)] = None
    previous_response_id: Annotated[None, _must(f"must be left out: {_SEND_AGAIN}")] = None
    conversation: Annotated[None, _must(f"must be left out: {_SEND_AGAIN}")] = None
    prompt: Annotated[None, _must("must be left out: no templates of prompts are kept here; use instructions")] = None
    background: Annotated[
        Literal[False] | None, _must("must be false or left out: no answer is kept here; use stream", False)
    ] = None
    truncation: Annotated[
        Literal["disabled"] | None, _must("must be 'disabled': no item is left out for you; send fewer", "disabled")
    ] = None

    metadata: dict[StrictStr, StrictStr] | None = None
    reasoning: dict[str, Any] | None = None
    max_tool_calls: StrictInt | None = None
    client_metadata: dict[str, Any] | None = None

    adapters: list[Adapter] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    continue_final_message: StrictBool = False
    top_k: StrictInt | None = None
    min_p: Number | None = None
    seed: StrictInt | None = None
    repetition_penalty: Number | None = None
    presence_penalty: Number | None = None
    frequency_penalty: Number | None = None

    @property
    def shows_logprobs(self) -> bool:
        """Whether the answer has the logprobs of its tokens."""
        return LOGPROBS in (self.include or ())
