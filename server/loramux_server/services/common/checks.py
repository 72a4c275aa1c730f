"""Checks of requests, before anything is looked up or computed. Pure functions; all bad fields come back at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from ...core.bounds import (
    MAX_METADATA,
    MAX_METADATA_BYTES,
    MAX_STACK,
    WEIGHT,
    too_many,
    utf8_size,
)
from ...core.callers.principal import Principal
from ...core.errors import Code, Error, FieldViolation
from ...core.types import StackItem
from ...store.adapters.refs import check_new_name, parse_ref
from ...text.chat.conversation import Report, read_template_kwargs


def check_result_name(name: str, principal: Principal) -> None:
    """Refuse a name under which the caller may not publish.

    Raises INVALID_ARGUMENT for what is no new name, PERMISSION_DENIED for one that is not on the key's list, whether
    there is such an adapter or not.
    """
    check_new_name(name)
    if not principal.may_use(name):
        raise Error(
            Code.PERMISSION_DENIED,
            f"name: {name!r} is none of the adapters that the key may use; choose one of these, or use another key",
            reason="ADAPTER_NOT_ALLOWED",
        )


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
