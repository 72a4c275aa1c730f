"""Checks of requests, before anything is looked up or computed. Pure functions; all bad fields come back at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from ...core.bounds import (
    MAX_METADATA,
    MAX_METADATA_BYTES,
    MAX_STACK,
    MAX_STOP_CHARS,
    MAX_STOPS,
    NOT_UNICODE,
    WEIGHT,
    Bound,
    sampling_violations,
    text_violations,
    too_many,
    utf8_size,
)
from ...core.errors import Code, Error, FieldViolation, invalid
from ...core.principal import Principal
from ...core.types import Asked, GenerateRequest, Grammar, StackItem
from ...store.adapters.refs import check_new_name, parse_ref
from ...text.conversation import Report, read_content, read_template_kwargs
from ...text.response_format import parse_format
from ...text.tokenizer import ROLES
from .limits import Limits


def check_generation(request: GenerateRequest, limits: Limits, vocab_size: int) -> Grammar | None:
    """The grammar of a generation request, if it names one.

    Raises INVALID_ARGUMENT with everything that is wrong and can be seen without a tokenizer or the registry.
    """
    found = [
        *prompt_violations(request, limits),
        *stack_violations(request.adapters),
        *sampling_violations(
            request.sampling,
            vocab_size,
            max_tokens=limits.max_new_tokens,
            max_logprobs=limits.max_logprobs,
            max_logit_bias=limits.max_logit_bias,
        ),
        *stop_violations(request.stop),
    ]
    found += Bound(1, limits.max_choices).violations("n", request.n)
    grammar = None
    if request.response_format is not None:
        try:
            grammar = parse_format(request.response_format)
        except Error as error:
            found += error.violations
    if found:
        raise invalid(found)
    return grammar


def prompt_violations(request: Asked, limits: Limits, *, answered: bool = True) -> Iterator[FieldViolation]:
    """A request needs a non-empty prompt or at least one message, not both, within the byte limit.

    JSON in it is not read here. ``answered`` tells whether the request asks for an answer.
    """
    if request.prompt is not None and request.messages:
        yield FieldViolation("prompt", "is given together with messages; give one of the two")
    elif request.prompt is not None:
        yield from text_violations("prompt", request.prompt, limits.max_prompt_bytes)
    elif request.messages:
        yield from message_violations(request, limits)
    else:
        yield FieldViolation("prompt", "is missing; give a prompt or messages")
    if request.prompt is not None:
        for field in ("tools", "chat_template_kwargs", "continue_final_message"):
            if getattr(request, field):
                yield FieldViolation(field, "is for messages; a prompt is continued as it is: leave it out")
    last = request.messages[-1].role if request.messages else ""
    if answered and last == "assistant" and not request.continue_final_message:
        # Whoever sends one hardly ever means that it is closed and a second answer opened, as templates do.
        yield FieldViolation(
            "continue_final_message",
            "is not set, and messages end with an assistant's turn: set it to go on writing that turn, or end with a "
            "turn to be answered",
        )


def message_violations(request: Asked, limits: Limits) -> Iterator[FieldViolation]:
    """Known roles, valid text, no more messages and bytes than allowed."""
    if len(request.messages) > limits.max_messages:
        yield from too_many("messages", len(request.messages), limits.max_messages, "messages")
        return
    beside = sum(utf8_size(text) or 0 for text in (request.tools, request.chat_template_kwargs))
    total = beside
    found: list[FieldViolation] = []
    for i, message in enumerate(request.messages):
        if message.role not in ROLES:
            found.append(
                FieldViolation(
                    f"messages[{i}].role", f"is {shown(message.role)}; it must be one of {', '.join(sorted(ROLES))}"
                )
            )
        content = read_content(message.content, f"messages[{i}].content", violations_to(found))
        said = {**message.fields, "content": content}
        for name in said.keys() - {"role"}:
            size = utf8_size(said[name])
            if size is None:
                found.append(FieldViolation(f"messages[{i}].{name}", NOT_UNICODE))
            total += size or 0
    yield from found
    if total > limits.max_prompt_bytes:
        what = f"hold {total} bytes{', tools included' if beside else ''}"
        yield FieldViolation("messages", f"{what}, at most {limits.max_prompt_bytes} are allowed")


def check_result_name(name: str, principal: Principal, field: str = "name") -> str:
    """``name`` if the caller may publish under it.

    Raises INVALID_ARGUMENT for what is no new name, PERMISSION_DENIED for one that is not on the key's list, whether
    there is such an adapter or not.
    """
    check_new_name(name, field)
    if not principal.may_use(name):
        raise Error(
            Code.PERMISSION_DENIED,
            f"{field}: {name!r} is none of the adapters that the key may use; choose one of these, or use another key",
            reason="ADAPTER_NOT_ALLOWED",
        )
    return name


def violations_to(found: list[FieldViolation]) -> Report:
    """Takes what is wrong with a field, to ``found``."""
    return lambda field, what: found.append(FieldViolation(field, what))


def template_kwargs_violations(text: str) -> list[FieldViolation]:
    """What is wrong with ``chat_template_kwargs``, a JSON object as text."""
    found: list[FieldViolation] = []
    read_template_kwargs(text, "chat_template_kwargs", violations_to(found))
    return found


def stack_violations(items: Iterable[StackItem], field: str = "adapters") -> Iterator[FieldViolation]:
    """At most ``MAX_STACK`` well-formed references, each adapter once (whatever its version), finite sane weights."""
    items = tuple(items)
    if len(items) > MAX_STACK:
        yield from too_many(field, len(items), MAX_STACK, "entries")
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
        yield from WEIGHT.violations(f"{field}[{i}].weight", item.weight)


def stop_violations(stop: tuple[str, ...]) -> Iterator[FieldViolation]:
    """Few, short, non-empty stop strings."""
    if len(stop) > MAX_STOPS:
        yield from too_many("stop", len(stop), MAX_STOPS, "strings")
        return
    for i, text in enumerate(stop):
        if utf8_size(text) is None:
            yield FieldViolation(f"stop[{i}]", NOT_UNICODE)
        elif not 1 <= len(text) <= MAX_STOP_CHARS:
            yield FieldViolation(f"stop[{i}]", f"has {len(text)} characters; it must have 1 to {MAX_STOP_CHARS}")


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
        yield from too_many(field, len(metadata), MAX_METADATA, "entries")
        return
    for key, value in metadata.items():
        size = utf8_size(key + value)
        if size is None or size > MAX_METADATA_BYTES:
            yield FieldViolation(f"{field}[{shown(key)}]", f"is not valid text of at most {MAX_METADATA_BYTES} bytes")


def shown(text: str, limit: int = 80) -> str:
    """A caller's text quoted for a message: escaped and cut."""
    return ascii(text if len(text) <= limit else text[:limit] + "...")
