"""From a prompt or a conversation to token ids, with the checks that need the tokenizer."""

from __future__ import annotations

from collections.abc import Sequence

from ...core.errors import invalid, invalid_field
from ...core.types import Message
from ...text import TextTokenizer
from ..common.checks import context_violation


def encode_prompt(
    text: TextTokenizer, prompt: str | None, messages: Sequence[Message], continue_final_message: bool = False
) -> list[int]:
    """Ids as the model sees them. Plain computation: call it off the event loop. Raises INVALID_ARGUMENT."""
    if prompt is not None:
        ids = text.encode(prompt)
    else:
        ids = text.encode_chat(messages, continue_final_message=continue_final_message)
    if not ids:
        raise invalid_field(prompt_field(prompt), "has no tokens; give some text")
    return ids


def check_context(prompt: str | None, prompt_tokens: int, max_context: int) -> None:
    """Raise INVALID_ARGUMENT unless a prompt leaves room for a new token."""
    violation = context_violation(prompt_field(prompt), prompt_tokens, max_context)
    if violation is not None:
        raise invalid([violation], reason="PROMPT_TOO_LONG")


def prompt_field(prompt: str | None) -> str:
    """The field that the caller filled."""
    return "messages" if prompt is None else "prompt"
