"""OpenAI's answers by type, as the clients read them and ``/openapi.json`` tells them."""

from __future__ import annotations

from typing import Literal, NotRequired, TypeAlias

from typing_extensions import TypedDict

Finish = Literal["stop", "length", "tool_calls"]


class PromptDetails(TypedDict):
    """Of the tokens of a prompt."""

    cached_tokens: int


class TokenUsage(TypedDict):
    """Tokens of a request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class TopLogprob(TypedDict):
    """A token with its log-probability."""

    token: str
    logprob: float
    bytes: list[int]


class ContentLogprob(TopLogprob):
    """A token of an answer, and those that were as likely."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(TypedDict):
    """Log-probabilities of a message."""

    content: list[ContentLogprob]
    refusal: None


class CalledFunction(TypedDict):
    """``arguments`` is JSON in a text."""

    name: str
    arguments: str


class AnsweredToolCall(TypedDict):
    """A call of a tool; ``index`` in streams alone."""

    id: str
    type: Literal["function"]
    function: CalledFunction
    index: NotRequired[int]


class AnsweredMessage(TypedDict):
    """The assistant's turn."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: NotRequired[str]
    tool_calls: NotRequired[list[AnsweredToolCall]]


class ChatChoice(TypedDict):
    """One answer."""

    index: int
    message: AnsweredMessage
    logprobs: ChatLogprobs | None
    finish_reason: Finish | None


class ChatCompletion(TypedDict):
    """All answers to a chat."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: TokenUsage | None


class Delta(TypedDict, total=False):
    """What a piece adds to a message."""

    role: Literal["assistant"]
    content: str
    reasoning_content: str
    tool_calls: list[AnsweredToolCall]


class ChunkChoice(TypedDict):
    """What a piece adds to one answer."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: Finish | None


class ChatCompletionChunk(TypedDict):
    """A piece of a stream."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: NotRequired[TokenUsage | None]


class TextLogprobs(TypedDict):
    """Lists beside each other, a token each."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class TextChoice(TypedDict):
    """One answer, or a piece of it."""

    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: Finish | None


class TextCompletion(TypedDict):
    """All answers to plain prompts, or a piece of a stream."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: NotRequired[TokenUsage | None]


class Model(TypedDict):
    """The base, an adapter or an alias; ``root`` is what it means now."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    parent: str | None


class LoraAdapter(TypedDict):
    """An adapter as llama.cpp lists it: ``id`` is its name, ``path`` its current version."""

    id: str
    path: str
    scale: float


LoraAdapters: TypeAlias = list[LoraAdapter]


class ModelList(TypedDict):
    """All models that a key may use."""

    object: Literal["list"]
    data: list[Model]


class DeletedModel(TypedDict):
    """A model that is gone."""

    id: str
    object: Literal["model"]
    deleted: Literal[True]


class Embedding(TypedDict):
    """The embedding of one text: numbers, or float32 in little-endian order as base64."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingUsage(TypedDict):
    """Tokens of all texts."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(TypedDict):
    """Embeddings, in the order of the texts."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage
