"""Generation, scoring, embeddings, tokenisation."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from loramux.v1 import common_pb2
from loramux.v1 import inference_pb2 as pb

from ...core.call import Call
from ...core.errors import invalid_field
from ...core.types import Chunk, Pooling, SamplingParams, TokenLogprob, Usage
from ...services.inference.types import (
    Completion,
    Embeddings,
    EmbedRequest,
    GenerateRequest,
    Score,
    ScoreRequest,
    TokenizeRequest,
    Tokens,
)
from ...text.answers.forced_calls import ToolChoice, ToolMode
from .common import applied_to_proto, messages_from_proto, numbers, set_fields, stack_from_proto, to_proto, word

TokenText = Callable[[int], str]

FINISH_REASONS = numbers(pb.FinishReason.DESCRIPTOR)

# Scalars of SamplingParams under the same name.
_SAMPLING = (
    *("max_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty"),
    *("presence_penalty", "frequency_penalty", "seed", "logprobs"),
)


def _asked(request: pb.GenerateRequest | pb.ScoreRequest | pb.TokenizeRequest) -> dict[str, Any]:
    """What the answer follows: the fields of :class:`Asked`."""
    return {
        "prompt": request.prompt if request.HasField("prompt") else None,
        "messages": messages_from_proto(request.messages),
        "continue_final_message": request.continue_final_message,
        "tools": request.tools,
        "chat_template_kwargs": request.chat_template_kwargs,
    }


def generate_from_proto(request: pb.GenerateRequest, call: Call, defaults: SamplingParams) -> GenerateRequest:
    """A generation as the services take it. Nothing is checked here but what our own types cannot hold."""
    return GenerateRequest(
        **_asked(request),
        adapters=stack_from_proto(request.adapters),
        sampling=sampling_from_proto(request, defaults),
        stop=tuple(request.stop),
        n=request.n if request.HasField("n") else 1,
        principal=call.principal,
        request_id=call.request_id,
        deadline=call.deadline,
        response_format=format_from_proto(request.response_format) if request.HasField("response_format") else None,
        tool_choice=tool_choice_from_proto(request.tool_choice),
    )


def sampling_from_proto(request: pb.GenerateRequest, defaults: SamplingParams) -> SamplingParams:
    """The sampling fields that are set, over the defaults."""
    return replace(
        defaults,
        **set_fields(request, _SAMPLING),
        logit_bias=tuple(sorted(request.logit_bias.items())),
        stop_token_ids=tuple(request.stop_token_ids),
        ignore_eos=request.ignore_eos,
        min_tokens=request.min_tokens,
    )


def format_from_proto(shape: pb.ResponseFormat) -> dict[str, Any]:
    """``{"type": kind, kind: value}``; a JSON object has no value. Raises INVALID_ARGUMENT when no kind is set."""
    kind = shape.WhichOneof("format")
    if kind is None:
        raise invalid_field("response_format", "names no format; set one of its fields or leave it out")
    if kind == "json_object":
        return {"type": kind}
    value = list(shape.choice.choices) if kind == "choice" else getattr(shape, kind)
    return {"type": kind, kind: value}


def tool_choice_from_proto(choice: pb.ToolChoice) -> ToolChoice:
    """Which tools are called. Raises INVALID_ARGUMENT for a mode that is none."""
    mode = word(pb.ToolMode.DESCRIPTOR, choice.mode, "tool_choice.mode")
    return ToolChoice(ToolMode(mode or "auto"), choice.name, choice.single)


def chunk_to_proto(chunk: Chunk, token_text: TokenText) -> pb.GenerateResponse:
    """A piece of an answer. ``request_id`` is for the caller to set, on the first message."""
    message = pb.GenerateResponse(index=chunk.index, text=chunk.text, token_ids=chunk.token_ids)
    if chunk.logprobs:
        message.logprobs.extend(logprobs_to_proto(chunk.logprobs, token_text))
    if chunk.finish_reason is not None:
        message.finish_reason = FINISH_REASONS[chunk.finish_reason]
    if chunk.usage is not None:
        message.usage.CopyFrom(to_proto(common_pb2.Usage, chunk.usage))
    if chunk.adapters:
        message.adapters.extend(applied_to_proto(chunk.adapters))
    return message


def logprobs_to_proto(entries: Iterable[TokenLogprob], token_text: TokenText) -> list[pb.TokenLogprob]:
    """Log-probabilities with the tokens' texts and bytes."""
    return [_logprob_to_proto(entry, token_text) for entry in entries]


def _logprob_to_proto(entry: TokenLogprob, token_text: TokenText) -> pb.TokenLogprob:
    spelt, *of_top = entry.token_bytes or (b"",) * (1 + len(entry.top))
    return pb.TokenLogprob(
        token_id=entry.token_id,
        logprob=entry.logprob,
        token=token_text(entry.token_id),
        token_bytes=spelt,
        top=[
            pb.TopLogprob(token_id=id, logprob=logprob, token=token_text(id), token_bytes=added)
            for (id, logprob), added in zip(entry.top, of_top, strict=True)
        ],
    )


def completion_to_proto(completion: Completion, token_text: TokenText) -> pb.GenerateResult:
    """A whole answer."""
    choices = [to_proto(pb.Choice, c, logprobs=logprobs_to_proto(c.logprobs, token_text)) for c in completion.choices]
    adapters = applied_to_proto(completion.adapters)
    return to_proto(pb.GenerateResult, completion, choices=choices, adapters=adapters, request_id=completion.id)


def score_from_proto(request: pb.ScoreRequest, call: Call) -> ScoreRequest:
    """A continuation to score."""
    return ScoreRequest(
        continuation=request.continuation,
        **_asked(request),
        adapters=stack_from_proto(request.adapters),
        principal=call.principal,
        request_id=call.request_id,
        deadline=call.deadline,
    )


def embed_from_proto(request: pb.EmbedRequest, call: Call) -> EmbedRequest:
    """Texts to embed. Raises INVALID_ARGUMENT for an input without content, and a pooling that is none."""
    return EmbedRequest(
        input=tuple(_input(given, f"input[{i}]") for i, given in enumerate(request.input)),
        adapters=stack_from_proto(request.adapters),
        pooling=Pooling(word(pb.Pooling.DESCRIPTOR, request.pooling, "pooling") or "mean"),
        normalize=request.normalize if request.HasField("normalize") else True,
        dimensions=request.dimensions if request.HasField("dimensions") else None,
        principal=call.principal,
        request_id=call.request_id,
        deadline=call.deadline,
    )


def _input(given: pb.EmbedInput, path: str) -> str | tuple[int, ...]:
    if given.WhichOneof("content") is None:
        raise invalid_field(path, "has no content; set text or token_ids")
    return given.text if given.HasField("text") else tuple(given.token_ids.ids)


def embeddings_to_proto(found: Embeddings) -> pb.EmbedResponse:
    """Embeddings, and what they cost."""
    return pb.EmbedResponse(
        embeddings=[pb.Embedding(values=found.values(i)) for i in range(len(found.vectors))],
        usage=to_proto(common_pb2.Usage, Usage(found.prompt_tokens)),
        adapters=applied_to_proto(found.adapters),
    )


def tokenize_from_proto(request: pb.TokenizeRequest, call: Call) -> TokenizeRequest:
    """A text to tokenise."""
    return TokenizeRequest(
        **_asked(request),
        deadline=call.deadline,
    )


def score_to_proto(score: Score) -> pb.ScoreResponse:
    """The log-probabilities of a continuation; it counts as the completion."""
    usage = Usage(score.prompt_tokens, len(score.token_ids), score.cached_tokens)
    return to_proto(pb.ScoreResponse, score, usage=usage, adapters=applied_to_proto(score.adapters))


def tokens_to_proto(tokens: Tokens) -> pb.TokenizeResponse:
    """The tokens of a text."""
    return to_proto(pb.TokenizeResponse, tokens, token_ids=tokens.ids, tokens=tokens.pieces)
