"""Tool calls in an answer's text, for the families of models whose chat templates write them.

The format follows from the base's own template, never from a request: parsers that clients choose have been the way
into other servers. What is no call stays text.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NoReturn

from ...core.reading.json_values import why_unusable
from .marks import begun


class ToolFormat(StrEnum):
    """How a family of models writes a call."""

    HERMES = "hermes"
    """``<tool_call>{"name", "arguments"}</tool_call>``, each call in marks of its own (Hermes, Qwen)."""
    MISTRAL = "mistral"
    """``[TOOL_CALLS][{"name", "arguments"}, ...]`` as the whole answer."""
    LLAMA3 = "llama3"
    """``{"name", "parameters"}`` as the whole answer, after ``<|python_tag|>`` or not; several parted by ``;``."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that the model asks for. ``arguments`` is JSON as text."""

    name: str
    arguments: str


LONE_SURROGATE = re.compile("[\ud800-\udfff]")
MARKS = {ToolFormat.HERMES: "<tool_call>", ToolFormat.MISTRAL: "[TOOL_CALLS]", ToolFormat.LLAMA3: "<|python_tag|>"}
HERMES_END = "</tool_call>"


def tool_format(literals: str) -> ToolFormat | None:
    """The format of a base from what its chat template may write; None: its family is not known."""
    for format, mark in MARKS.items():
        if mark in literals:
            return format
    return ToolFormat.LLAMA3 if '"parameters"' in literals and "ipython" in literals else None


def new_call_id(format: ToolFormat | None) -> str:
    """An id that no call of another answer has either. Mistral's templates take nine letters and digits alone."""
    unique = uuid.uuid4().hex
    return unique[:9] if format is ToolFormat.MISTRAL else f"call_{unique[:24]}"


class ToolCallReader:
    """Takes an answer's text piece by piece; gives text and calls in their order, each as soon as it is certain."""

    def __init__(self, format: ToolFormat) -> None:
        self._format = format
        self._held = ""
        self._decided = format is ToolFormat.HERMES  # whether the answer is text, or may have calls in it
        self._inside = self._called = False

    def push(self, text: str) -> Iterator[str | ToolCall]:
        """What the text adds."""
        self._held += text
        if not self._decided:
            start = self._held.lstrip()
            opening = (MARKS[self._format], "[" if self._format is ToolFormat.MISTRAL else "{")
            if not start or any(start.startswith(o) or o.startswith(start) for o in opening):
                return  # held to the end: only all of it tells
            self._decided = True
        if self._format is ToolFormat.HERMES:
            yield from self._hermes()
            return
        held, self._held = self._held, ""
        yield held

    def finish(self) -> Iterator[str | ToolCall]:
        """What was held when the answer ended."""
        held, self._held = self._held, ""
        if self._inside:
            calls = _calls([held])
            yield from calls or (MARKS[ToolFormat.HERMES] + held,)
        elif self._decided:
            if held.strip() or (held and not self._called):
                yield held
        else:
            yield from self._whole(held)

    def _hermes(self) -> Iterator[str | ToolCall]:
        mark = MARKS[ToolFormat.HERMES]
        while True:
            if self._inside:
                end = _hermes_end(self._held)
                if end < 0:
                    return
                body, rest = self._held[:end], self._held[end + len(HERMES_END) :]
                self._inside, self._held = False, rest
                calls = _calls([body])
                self._called = self._called or bool(calls)
                yield from calls or (mark + body + HERMES_END,)
                continue
            before, found, rest = self._held.partition(mark)
            if not found:
                # Space before a call is no text, nor is what may be the beginning of its mark.
                kept = before[: len(before) - begun(before, mark)].rstrip()
                self._held = before[len(kept) :]
                if kept:
                    yield kept
                return
            if before := before.rstrip():
                yield before
            self._inside, self._held = True, rest

    def _whole(self, held: str) -> Iterator[str | ToolCall]:
        body = held.strip().removeprefix(MARKS[self._format]).strip()
        parts = [body] if self._format is ToolFormat.MISTRAL else _objects(body)
        calls = _calls(parts)
        if calls:
            yield from calls
        elif held:
            yield held


def _hermes_end(text: str) -> int:
    """Where the mark after a call begins, which is in no string of its JSON; -1: not yet."""
    end = text.find(HERMES_END)
    while end >= 0 and re.sub(r"\\.", "", text[:end], flags=re.DOTALL).count('"') % 2:
        end = text.find(HERMES_END, end + 1)
    return end


def _objects(text: str) -> list[str]:
    """JSON objects parted by semicolons."""
    found: list[str] = []
    while text:
        try:
            _, end = _DECODER.raw_decode(text)
        except (ValueError, RecursionError):
            return []
        found.append(text[:end])
        text = text[end:].lstrip(" \n\t;")
    return found


def _calls(parts: list[str]) -> list[ToolCall]:
    """The calls that the parts are; empty unless every part is one, or a list of some."""
    found: list[ToolCall] = []
    try:
        for part in parts:
            value = _DECODER.decode(part)
            for each in value if isinstance(value, list) else [value]:
                call = _call(each)
                if call is None:
                    return []
                found.append(call)
    except (ValueError, RecursionError):
        return []
    return found


def _call(value: Any) -> ToolCall | None:
    """The call that a JSON value is; None: it is none, or no next turn could send it back.

    Raises RecursionError for arguments that are nested too deeply.
    """
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    name, arguments = _as_text(value["name"]), value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):
        given = arguments
        try:
            arguments = _DECODER.decode(given)
        except ValueError:
            arguments = None
        if not isinstance(arguments, dict):  # the client is to see what its tool would be given
            return ToolCall(name, _as_text(given))
    if not isinstance(arguments, dict):
        return None
    written = _as_text(json.dumps(arguments, ensure_ascii=False))
    return None if why_unusable(json.loads(written)) else ToolCall(name, written)


def _as_text(written: str) -> str:
    """``written`` with U+FFFD in place of lone surrogates: JSON can spell them as escapes, and UTF-8 has none."""
    return LONE_SURROGATE.sub("\ufffd", written)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)
