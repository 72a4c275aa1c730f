"""The fields of OpenAI's requests by type; their values are checked by the services, as those of every door.

A field that is none is refused by name. What OpenAI documents and changes nothing here is taken and ignored.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, StrictBool, StrictInt, StrictStr

from ..bodies.fields import Adapter, Number, Strict


class StreamOptions(Strict):
    """What a stream has beside its pieces."""

    include_usage: StrictBool = False
    include_obfuscation: StrictBool = False
    """Ignored: nothing is padded."""


class Ignored(Strict):
    """What OpenAI documents and changes nothing here."""

    user: StrictStr | None = None
    metadata: dict[str, Any] | None = None
    store: Literal[False] | None = None
    service_tier: StrictStr | None = None
    safety_identifier: StrictStr | None = None
    prompt_cache_key: StrictStr | None = None
    prompt_cache_retention: StrictStr | None = None
    prompt_cache_options: Any = None


class Scaled(Strict):
    """One adapter of a stack as llama.cpp writes it; ``id`` is its name."""

    id: StrictStr | StrictInt
    scale: Number = 1.0


class Sampling(Ignored):
    """What chat and plain completions share."""

    model: StrictStr
    adapters: list[Adapter] = Field(default_factory=list)
    lora: list[Scaled] | None = None
    max_tokens: StrictInt | None = None
    temperature: Number | None = None
    top_p: Number | None = None
    top_k: StrictInt | None = None
    min_p: Number | None = None
    repetition_penalty: Number | None = None
    presence_penalty: Number | None = None
    frequency_penalty: Number | None = None
    logit_bias: dict[StrictStr, Number] | None = None
    seed: StrictInt | None = None
    stop: StrictStr | list[StrictStr] | None = None
    stop_token_ids: list[StrictInt] | None = None
    ignore_eos: StrictBool = False
    min_tokens: StrictInt = 0
    n: StrictInt | None = None
    stream: StrictBool | None = False
    stream_options: StreamOptions | None = None


class TextPart(Strict):
    """A part of a message. Only texts are understood."""

    type: Literal["text", "input_text", "output_text"]
    text: StrictStr


class FunctionCall(Strict):
    """The function of a call, its arguments JSON as text."""

    name: StrictStr
    arguments: StrictStr = "{}"


class ToolCall(Strict):
    """A call that an assistant's turn made."""

    id: StrictStr | None = None
    type: Literal["function"] = "function"
    function: FunctionCall
    index: StrictInt | None = None


class ChatMessage(Strict):
    """One turn. What a client sends back of an earlier answer is taken too."""

    role: StrictStr
    content: StrictStr | list[TextPart] | None = None
    name: StrictStr | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: StrictStr | None = None
    reasoning_content: StrictStr | None = None
    refusal: None = None
    annotations: list[Any] | None = None
    audio: None = None
    function_call: None = None


class JsonSchema(Strict):
    """The schema that an answer must fit."""

    name: StrictStr | None = None
    description: StrictStr | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: StrictBool | None = None


class TextFormat(Strict):
    """Free text."""

    type: Literal["text"]


class JsonObjectFormat(Strict):
    """Any JSON object."""

    type: Literal["json_object"]


class JsonSchemaFormat(Strict):
    """A JSON document that fits a schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]


class StructuredOutputs(Strict):
    """Shapes beyond OpenAI's, named as vLLM names them; exactly one."""

    json_: dict[str, Any] | StrictStr | None = Field(default=None, alias="json")
    regex: StrictStr | None = None
    choice: list[StrictStr] | None = None
    grammar: StrictStr | None = None


class ToolName(Strict):
    """The function that must be called."""

    name: StrictStr = Field(min_length=1)


class NamedTool(Strict):
    """The tool that must be called."""

    type: Literal["function"]
    function: ToolName


class ChatRequest(Sampling):
    """``POST /v1/chat/completions``."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: StrictInt | None = None
    logprobs: StrictBool | None = False
    top_logprobs: StrictInt | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: StrictBool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    continue_final_message: StrictBool = False
    modalities: list[Literal["text"]] | None = None
    reasoning_effort: StrictStr | None = None
    verbosity: StrictStr | None = None
    prediction: Any = None
    """Ignored: a guess at the answer makes none faster here."""


class CompletionRequest(Sampling):
    """``POST /v1/completions``."""

    prompt: StrictStr | list[StrictStr]
    logprobs: StrictInt | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    echo: Literal[False] | None = False
    best_of: Literal[1] | None = None
    suffix: None = None


class EmbeddingRequest(Strict):
    """``POST /v1/embeddings``."""

    model: StrictStr
    adapters: list[Adapter] = Field(default_factory=list)
    input: StrictStr | list[StrictStr] | list[StrictInt] | list[list[StrictInt]]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: StrictInt | None = None
    pooling: Literal["mean", "last"] = "mean"
    normalize: StrictBool = True
    user: StrictStr | None = None
