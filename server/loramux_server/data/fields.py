"""Fields of dataset rows: conversations, prompts, answers and texts, in OpenAI's and TRL's words, checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypedDict

from ..text.chat.conversation import Report, read_message, read_template_kwargs, read_tools
from ..text.tokenizer import ROLES, is_role


class TemplateInputs(TypedDict):
    """What the chat template of a row gets beside the messages."""

    tools: tuple[Mapping[str, Any], ...] | None
    chat_template_kwargs: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ChatRow:
    """A conversation. ``trained[i]``: whether message i is trained on; only assistant turns can be."""

    messages: tuple[Mapping[str, Any], ...]
    trained: tuple[bool, ...]
    tools: tuple[Mapping[str, Any], ...] | None = None
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def template_inputs(self) -> TemplateInputs:
        return {"tools": self.tools, "chat_template_kwargs": self.chat_template_kwargs}


@dataclass(frozen=True, slots=True)
class CompletionRow:
    """A plain prompt and the completion after it, which is trained on."""

    prompt: str
    completion: str
    passages: str = ""
    """Text of others that comes before the prompt: control tokens in it are text."""


@dataclass(frozen=True, slots=True)
class TextRow:
    """Plain text, all of it trained on."""

    text: str


Answered = ChatRow | CompletionRow
"""A row with a prompt and an answer."""


class BadRow(Exception):
    """A row that cannot be used; ``problems`` has a sentence for each thing that is wrong with it."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


class TooLong(BadRow):
    """A row that is too long: it is refused, never cut."""

    def __init__(self, what: str, max_length: int) -> None:
        """``what``: a clause that ends with a number of tokens."""
        super().__init__([f"{what}; at most {max_length} are allowed: shorten or split it"])


def chat(
    value: Any,
    name: str,
    inputs: TemplateInputs,
    problems: list[str],
    trained_from: int = 0,
    answer: str = "",
    *,
    unanswered: bool = False,
) -> ChatRow | None:
    """A conversation from a list of messages; only those from index ``trained_from`` on can be trained on.

    ``name`` is the row's name of the list, ``answer`` that of the part which is trained on. Of an ``unanswered``
    conversation nothing is: it asks for an answer that comes later.
    """
    if not isinstance(value, list) or not value:
        problems.append(f"{name} must be a list with at least one message")
        return None
    before = len(problems)
    turns = [_message(message, f"{name}[{index}]", problems) for index, message in enumerate(value)]
    if len(problems) > before:
        return None
    messages = tuple(message for message, _ in turns)
    if unanswered:
        return ChatRow(messages, (False,) * len(messages), **inputs)
    trained = tuple(train and index >= trained_from for index, (_, train) in enumerate(turns))
    if not any(message["role"] == "assistant" for message in messages[trained_from:]):
        problems.append(f"there is no assistant turn in {answer or name}, so there is nothing to learn")
    elif not any(trained):
        problems.append("every assistant turn has weight 0, so there is nothing to learn")
    elif trained[0]:
        problems.append(
            f"{name}[0] is an assistant turn that answers nothing; begin with a user turn or give it weight 0"
        )
    return ChatRow(messages, trained, **inputs) if len(problems) == before else None


def answered(prompt: Any, answer: Any, name: str, inputs: TemplateInputs, problems: list[str]) -> Answered | None:
    """A prompt and its answer, the field ``name``: both texts, or both lists of messages as TRL has them."""
    if isinstance(prompt, list) and isinstance(answer, list):
        if not answer:
            problems.append(f"{name} is empty")
            return None
        return chat([*prompt, *answer], f"prompt + {name}", inputs, problems, len(prompt), name)
    if isinstance(prompt, list) or isinstance(answer, list):
        problems.append(f"prompt and {name} must both be strings or both be lists of messages")
        return None
    if all([is_text(prompt, "prompt", problems), is_text(answer, name, problems)]):
        return CompletionRow(prompt, answer)
    return None


def _message(value: Any, path: str, problems: list[str]) -> tuple[dict[str, Any], bool]:
    """A message as the chat template gets it, and whether it is trained on."""
    if not isinstance(value, dict):
        problems.append(f"{path} is not an object with role and content")
        return {}, False
    role = value.get("role")
    if not is_role(role):
        said = "has no role" if role is None else f"has role {str(role)[:40]!r}"
        problems.append(f"{path} {said}; roles are {', '.join(sorted(ROLES))}")
    weight = value.get("weight")
    if weight is not None and (isinstance(weight, bool) or weight not in (0, 1)):
        problems.append(f"{path}.weight is {str(weight)[:40]}; it must be 0 or 1")
    before = len(problems)
    message = read_message({k: v for k, v in value.items() if k != "weight"}, path, _sentences(problems))
    calls = message.get("tool_calls")
    if len(problems) == before and not message["content"].strip():
        if "content" not in value and not calls:
            problems.append(f"{path} has no content")
        elif role != "tool" and not (calls and role == "assistant"):
            problems.append(f"{path}.content is empty")
    return message, role == "assistant" and weight != 0


def template_inputs_of(value: Mapping[str, Any], problems: list[str]) -> TemplateInputs:
    """What the chat template of a row gets beside the messages."""
    if "functions" in value:
        problems.append('"functions" is the old spelling; use "tools"')
    report = _sentences(problems)
    return {
        "tools": read_tools(value.get("tools"), "tools", report),
        "chat_template_kwargs": read_template_kwargs(value.get("chat_template_kwargs"), "chat_template_kwargs", report),
    }


def _sentences(problems: list[str]) -> Report:
    return lambda field, what: problems.append(f"{field} {what}")


def is_text(text: Any, name: str, problems: list[str]) -> bool:
    """Whether a field holds a text that is not blank; what is wrong goes to ``problems``."""
    if not isinstance(text, str):
        problems.append(f"{name} must be a string")
    elif not text.strip():
        problems.append(f"{name} is empty" + ("; use text for rows without a prompt" if name == "prompt" else ""))
    else:
        return True
    return False
