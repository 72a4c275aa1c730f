"""Keep control tokens that users write in their messages from becoming control tokens.

A message may contain the text ``<|im_end|>``. Rendered by the template and tokenised as it stands, it would end the
turn and let its author write a system turn of their own. So control tokens in all strings of messages, tools and
template arguments, names of their fields included, are wrapped in two marker characters while the template runs (it can
still find and split at them), and then broken in two by a *breaker*: a special token with an unguessable text that the
tokenizer knows and whose id is dropped afterwards. Conversations without such text, that is all but a few, take none of
these steps.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..core.errors import invalid_field

_MARKERS = [chr(point) for point in range(0xFDD0, 0xFDF0)]
"""Unicode noncharacters: never meaningful in text, yet valid in it, so a pair that is not in use is picked."""
_ESCAPES = re.compile(r"\\u[0-9a-fA-F]{4}")


class ControlGuard:
    """Marks and breaks the control tokens in one tokenizer's conversations.

    ``special``: tokens that nobody may write; ``template``: further added tokens that the template writes and that
    only the assistant may (``<think>`` belongs in its turn); ``breaker``: see the module.
    """

    def __init__(self, special: Sequence[str], template: Sequence[str], breaker: str) -> None:
        self._assistant = _any_of(special)
        self._other = _any_of([*special, *template])
        self._breaker = breaker

    def mark(
        self, messages: Sequence[Mapping[str, Any]], given: Mapping[str, Any]
    ) -> tuple[list[Mapping[str, Any]], Mapping[str, Any], str]:
        """Messages and what else the template is given (tools, ...) with control tokens wrapped.

        Comes with the two marker characters, or "" if nothing was found.
        """
        found = [bool(pattern.search(text)) for pattern, text in self._strings(messages, given)]
        if not any(found):
            return list(messages), given, ""
        used = set("".join(text for _, text in self._strings(messages, given)))
        escaped = {match.lower() for _, text in self._strings(messages, given) for match in _ESCAPES.findall(text)}
        free = [marker for marker in _MARKERS if marker not in used and _escaped(marker) not in escaped][:2]
        if len(free) < 2:
            raise invalid_field("messages", "contains Unicode noncharacters beside control tokens; remove them")
        markers = "".join(free)
        marked: list[Mapping[str, Any]] = [
            {**_wrap(message, self._pattern(message), markers), "role": message["role"]} for message in messages
        ]
        return marked, _wrap(given, self._other, markers), markers

    def break_marked(self, rendered: str, markers: str) -> str:
        """The rendered text without markers, every wrapped control token broken by the breaker."""
        if not markers:
            return rendered
        # A template can write JSON in ASCII, where the markers are escapes.
        start, end = (f"(?:{marker}|{re.escape(_escaped(marker))})" for marker in markers)
        wrapped = re.compile(f"{start}({self._other.pattern}){end}")
        rendered = wrapped.sub(lambda match: self._break(match.group(1)), rendered)
        # A template that cuts strings can part the markers of a token: break there as well.
        return re.sub(f"{start}|{end}", lambda _: self._breaker, rendered)

    def break_all(self, text: str) -> str:
        """Text with every control token in it broken that nobody may write."""
        return self._assistant.sub(lambda match: self._break(match.group()), text)

    def _break(self, token: str) -> str:
        head, tail = token[0], token[1:]
        if not tail:
            raise invalid_field("messages", f"contains the control token {token!r}; remove it")
        return head + self._breaker + self._other.sub(lambda match: self._break(match.group()), tail)

    def _pattern(self, message: Mapping[str, Any]) -> re.Pattern[str]:
        return self._assistant if message.get("role") == "assistant" else self._other

    def _strings(
        self, messages: Sequence[Mapping[str, Any]], given: Mapping[str, Any]
    ) -> Iterator[tuple[re.Pattern[str], str]]:
        for message in messages:
            yield from ((self._pattern(message), text) for text in _texts(message))
        yield from ((self._other, text) for text in _texts(given))


def _any_of(tokens: Sequence[str]) -> re.Pattern[str]:
    """Matches any of the tokens, the longest first; with none it matches nothing."""
    return re.compile("|".join(map(re.escape, sorted(set(tokens), key=len, reverse=True))) or "(?!)")


def _texts(value: Any) -> Iterator[str]:
    """All strings in a value: also the names of fields, which a template may print as well."""
    waiting = [value]
    while waiting:
        each = waiting.pop()
        if isinstance(each, str):
            yield each
        elif isinstance(each, Mapping):
            waiting.extend(each)
            waiting.extend(each.values())
        elif isinstance(each, list | tuple):
            waiting.extend(each)


def _wrap(value: Any, pattern: re.Pattern[str], markers: str) -> Any:
    if isinstance(value, str):
        return pattern.sub(lambda match: f"{markers[0]}{match.group()}{markers[1]}", value)
    if isinstance(value, Mapping):
        return {_wrap(name, pattern, markers): _wrap(item, pattern, markers) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_wrap(item, pattern, markers) for item in value]
    return value


def _escaped(marker: str) -> str:
    return f"\\u{ord(marker):04x}"
