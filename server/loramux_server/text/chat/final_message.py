"""Conversations whose last message is gone on with: rendered up to where its content ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...core.errors import invalid_field
from .chat_template import ChatTemplate


def up_to_final_content(
    template: ChatTemplate,
    messages: Sequence[Mapping[str, Any]],
    given: Mapping[str, Any],
    *,
    mark: str,
) -> str:
    """The conversation as text, cut where the content of its last message ends, as transformers finds that place.

    ``given`` is what the template is given beside them, ``mark`` text that no message holds. Raises INVALID_ARGUMENT
    (``continue_final_message``) where the template does not write the content as it is.
    """
    final = messages[-1]
    content = str(final.get("content") or "")
    # A template that trims contents takes the space behind the mark away, and what the content ended with before it.
    marked = [*messages[:-1], {**final, "content": f"{content}{mark} "}]
    before, found, after = template.render(marked, **given).rpartition(mark)
    if not found or content.strip() not in before:
        raise invalid_field(
            "continue_final_message",
            "cannot be kept: the model's chat template changes the last message or leaves out a part of it",
            reason="CHAT_TEMPLATE_REFUSED",
        )
    return before if after.startswith(" ") else before.rstrip()
