"""Checks of requests, before anything is looked up or computed. Pure functions; all bad fields come back at once."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping

from ...core.errors import Error, FieldViolation, invalid
from ...core.types import MAX_STACK, GenerateRequest, Grammar, Message, SamplingParams, StackItem
from ...store.refs import parse_ref
from ...text.conversation import read_template_kwargs
from ...text.response_format import parse_format
from ...text.stop import MAX_STOP_CHARS, MAX_STOPS
from ...text.tokenizer import ROLES
from .limits import Limits

MAX_WEIGHT = 100.0
MAX_TEMPERATURE = 10.0
MAX_PENALTY = 2.0
MAX_REPETITION_PENALTY = 10.0
MAX_LOGIT_BIAS = 100.0
MAX_STOP_TOKENS = 64
MAX_TOP_K = 2**31 - 1
MIN_SEED, MAX_SEED = -(2**63), 2**63 - 1
MAX_METADATA = 64
MAX_METADATA_BYTES = 4096


def check_generation(request: GenerateRequest, limits: Limits, vocab_size: int) -> Grammar | None:
    """The grammar of a generation request, if it names one.

    Raises INVALID_ARGUMENT with everything that is wrong and can be seen without a tokenizer or the registry.
    """
    found = [
        *prompt_violations(request.prompt, request.messages, limits),
        *final_message_violations(request.prompt, request.messages, request.continue_final_message),
        *stack_violations(request.adapters),
        *sampling_violations(request.sampling, limits, vocab_size),
        *stop_violations(request.stop),
    ]
    if not 1 <= request.n <= limits.max_choices:
        found.append(_outside("n", request.n, 1, limits.max_choices))
    grammar = None
    if request.response_format is not None:
        try:
            grammar = parse_format(request.response_format)
        except Error as error:
            found += error.violations
    if found:
        raise invalid(found)
    return grammar


def prompt_violations(
    prompt: str | None, messages: tuple[Message, ...], limits: Limits, field: str = "prompt"
) -> Iterator[FieldViolation]:
    """A request needs a non-empty prompt or at least one message, not both, within the byte limit."""
    if prompt is not None and messages:
        yield FieldViolation(field, "is given together with messages; give one of the two")
        return
    if prompt is None and not messages:
        yield FieldViolation(field, "is missing; give a prompt or messages")
        return
    if prompt is not None:
        yield from text_violations(field, prompt, limits.max_prompt_bytes)
        return
    yield from message_violations(messages, limits)


def final_message_violations(
    prompt: str | None, messages: tuple[Message, ...], continue_final_message: bool, *, asked: bool = True
) -> Iterator[FieldViolation]:
    """Whether to go on writing the last message has to be said where it is an assistant's and an answer is ``asked``.

    A caller hardly ever means that it is closed and a second answer opened, as templates do by themselves.
    """
    if continue_final_message and prompt is not None:
        yield FieldViolation("continue_final_message", "is for messages; a prompt is continued as it is: leave it out")
    if asked and not continue_final_message and messages and messages[-1].role == "assistant":
        yield FieldViolation(
            "continue_final_message",
            "is not set, and messages end with an assistant's turn: set it to go on writing that turn, or end with a "
            "turn to be answered",
        )


def message_violations(messages: tuple[Message, ...], limits: Limits) -> Iterator[FieldViolation]:
    """Known roles, valid text, no more messages and bytes than allowed."""
    if len(messages) > limits.max_messages:
        yield FieldViolation("messages", f"has {len(messages)} messages, at most {limits.max_messages} are allowed")
        return
    total = 0
    for i, message in enumerate(messages):
        if message.role not in ROLES:
            yield FieldViolation(
                f"messages[{i}].role", f"is {shown(message.role)}; it must be one of {', '.join(sorted(ROLES))}"
            )
        size = utf8_size(message.content)
        if size is None:
            yield FieldViolation(f"messages[{i}].content", "is not valid Unicode (lone surrogate)")
        total += size or 0
    if total > limits.max_prompt_bytes:
        yield FieldViolation("messages", f"hold {total} bytes, at most {limits.max_prompt_bytes} are allowed")


def template_kwargs_violations(text: str) -> list[FieldViolation]:
    """What is wrong with ``chat_template_kwargs``, a JSON object as text."""
    found: list[FieldViolation] = []
    read_template_kwargs(text, "chat_template_kwargs", lambda *each: found.append(FieldViolation(*each)))
    return found


def text_violations(field: str, text: str, max_bytes: int) -> Iterator[FieldViolation]:
    """A text must not be empty, must be valid Unicode, and has a limit in UTF-8 bytes."""
    size = utf8_size(text)
    if size is None:
        yield FieldViolation(field, "is not valid Unicode (lone surrogate)")
    elif size == 0:
        yield FieldViolation(field, "is empty")
    elif size > max_bytes:
        yield FieldViolation(field, f"has {size} bytes, at most {max_bytes} are allowed")


def stack_violations(items: Iterable[StackItem], field: str = "adapters") -> Iterator[FieldViolation]:
    """At most ``MAX_STACK`` well-formed references, each adapter once (whatever its version), finite sane weights."""
    items = tuple(items)
    if len(items) > MAX_STACK:
        yield FieldViolation(field, f"has {len(items)} entries, at most {MAX_STACK} are allowed")
        return
    first_with: dict[str, int] = {}
    for i, item in enumerate(items):
        try:
            name = parse_ref(item.adapter, f"{field}[{i}].adapter").name
        except Error as error:
            yield from error.violations
        else:
            if name in first_with:
                earlier = f"{field}[{first_with[name]}]"
                yield FieldViolation(
                    f"{field}[{i}].adapter", f"{name!r} is already in {earlier}; an adapter may be in a stack once"
                )
            first_with.setdefault(name, i)
        if not math.isfinite(item.weight):
            yield FieldViolation(f"{field}[{i}].weight", f"is {item.weight}; it must be a finite number")
        elif abs(item.weight) > MAX_WEIGHT:
            yield FieldViolation(
                f"{field}[{i}].weight", f"is {item.weight:g}; it must be between {-MAX_WEIGHT:g} and {MAX_WEIGHT:g}"
            )


def sampling_violations(sampling: SamplingParams, limits: Limits, vocab_size: int) -> Iterator[FieldViolation]:
    """Every number within its bounds; NaN and infinities are in none of them."""
    s = sampling
    if s.max_tokens < 1:
        yield FieldViolation("max_tokens", f"is {s.max_tokens}; it must be at least 1")
    elif s.max_tokens > limits.max_new_tokens:
        yield FieldViolation("max_tokens", f"is {s.max_tokens}; this server allows at most {limits.max_new_tokens}")
    if s.min_tokens < 0 or s.min_tokens > max(s.max_tokens, 1):
        yield _outside("min_tokens", s.min_tokens, 0, "max_tokens")
    yield from number_violations("temperature", s.temperature, 0, MAX_TEMPERATURE, note=" (0 is greedy)")
    if not 0 < s.top_p <= 1:
        yield FieldViolation("top_p", f"is {s.top_p:g}; it must be above 0 and at most 1 (1 is off)")
    if not 0 <= s.top_k <= MAX_TOP_K:
        yield FieldViolation("top_k", f"is {s.top_k}; it must be at least 0 (0 is off)")
    yield from number_violations("min_p", s.min_p, 0, 1, note=" (0 is off)")
    if not 0 < s.repetition_penalty <= MAX_REPETITION_PENALTY:
        yield FieldViolation(
            "repetition_penalty",
            f"is {s.repetition_penalty:g}; it must be above 0 and at most {MAX_REPETITION_PENALTY:g} (1 is off)",
        )
    yield from number_violations("presence_penalty", s.presence_penalty, -MAX_PENALTY, MAX_PENALTY)
    yield from number_violations("frequency_penalty", s.frequency_penalty, -MAX_PENALTY, MAX_PENALTY)
    yield from _logit_bias_violations(s, limits, vocab_size)
    if s.seed is not None and not MIN_SEED <= s.seed <= MAX_SEED:
        yield FieldViolation("seed", f"is {s.seed}; it must fit in 64 bits")
    if s.logprobs is not None and not 0 <= s.logprobs <= limits.max_logprobs:
        yield _outside("logprobs", s.logprobs, 0, limits.max_logprobs)
    if len(s.stop_token_ids) > MAX_STOP_TOKENS:
        yield FieldViolation(
            "stop_token_ids", f"has {len(s.stop_token_ids)} ids, at most {MAX_STOP_TOKENS} are allowed"
        )
    for i, token in enumerate(s.stop_token_ids[:MAX_STOP_TOKENS]):
        if not 0 <= token < vocab_size:
            yield _outside(f"stop_token_ids[{i}]", token, 0, vocab_size - 1)


def _logit_bias_violations(s: SamplingParams, limits: Limits, vocab_size: int) -> Iterator[FieldViolation]:
    if len(s.logit_bias) > limits.max_logit_bias:
        yield FieldViolation(
            "logit_bias", f"has {len(s.logit_bias)} entries, at most {limits.max_logit_bias} are allowed"
        )
        return
    seen: set[int] = set()
    for token, bias in s.logit_bias:
        field = f"logit_bias[{token}]"
        if not 0 <= token < vocab_size:
            yield FieldViolation(field, f"is no token of this model; ids go from 0 to {vocab_size - 1}")
        elif token in seen:
            yield FieldViolation(field, "is given twice")
        seen.add(token)
        yield from number_violations(field, bias, -MAX_LOGIT_BIAS, MAX_LOGIT_BIAS)


def stop_violations(stop: tuple[str, ...]) -> Iterator[FieldViolation]:
    """Few, short, non-empty stop strings."""
    if len(stop) > MAX_STOPS:
        yield FieldViolation("stop", f"has {len(stop)} strings, at most {MAX_STOPS} are allowed")
        return
    for i, text in enumerate(stop):
        if utf8_size(text) is None:
            yield FieldViolation(f"stop[{i}]", "is not valid Unicode (lone surrogate)")
        elif not 1 <= len(text) <= MAX_STOP_CHARS:
            yield FieldViolation(f"stop[{i}]", f"has {len(text)} characters; it must have 1 to {MAX_STOP_CHARS}")


def number_violations(field: str, value: float, low: float, high: float, *, note: str = "") -> Iterator[FieldViolation]:
    """``value`` must lie in [low, high]; NaN lies nowhere."""
    if not low <= value <= high:
        yield FieldViolation(field, f"is {value:g}; it must be between {low:g} and {high:g}{note}")


def context_violation(field: str, prompt_tokens: int, max_context: int) -> FieldViolation | None:
    """A prompt must leave room for at least one new token."""
    if prompt_tokens < max_context:
        return None
    return FieldViolation(
        field,
        f"has {prompt_tokens} tokens; the model's context is {max_context} tokens and the answer needs at least one"
        " of them. Shorten it",
    )


def metadata_violations(metadata: Mapping[str, str], field: str = "metadata") -> Iterator[FieldViolation]:
    """At most 64 entries of valid text, each at most 4096 bytes."""
    if len(metadata) > MAX_METADATA:
        yield FieldViolation(field, f"has {len(metadata)} entries, at most {MAX_METADATA} are allowed")
        return
    for key, value in metadata.items():
        size = utf8_size(key + value)
        if size is None or size > MAX_METADATA_BYTES:
            yield FieldViolation(f"{field}[{shown(key)}]", f"is not valid text of at most {MAX_METADATA_BYTES} bytes")


def utf8_size(text: str) -> int | None:
    """Bytes of ``text`` in UTF-8; None if it has lone surrogates and thus no UTF-8 form."""
    try:
        return len(text.encode("utf-8"))
    except UnicodeEncodeError:
        return None


def shown(text: str, limit: int = 80) -> str:
    """A caller's text quoted for a message: escaped and cut."""
    return ascii(text if len(text) <= limit else text[:limit] + "...")


def _outside(field: str, value: int, low: object, high: object) -> FieldViolation:
    return FieldViolation(field, f"is {value}; it must be between {low} and {high}")
