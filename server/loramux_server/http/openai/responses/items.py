"""The items of a response, each with the events that tell of it: their types after ``response.``, and their fields."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

from ....text.answers.tool_calls import ToolCall

Told: TypeAlias = tuple[str, dict[str, Any]]

_TEXTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "message": ({"role": "assistant"}, {"type": "output_text", "annotations": [], "logprobs": []}),
    "reasoning": ({"summary": []}, {"type": "reasoning_text"}),
}
"""Items that are texts: the fields of their own, and those of their one part."""


class TextItem:
    """A message or thoughts, while they are written. ``object`` is the item as it is now."""

    def __init__(self, kind: str, id: str, index: int) -> None:
        own, part = _TEXTS[kind]
        self.kind = kind
        self.object: dict[str, Any] = {"id": id, "type": kind, "status": "in_progress", **own, "content": []}
        self._part, self._pieces, self._logprobs = part, list[str](), list[dict[str, Any]]()
        self._index = index

    def open(self) -> Iterator[Told]:
        """There is an item, and there is its part."""
        yield "output_item.added", {"output_index": self._index, "item": self.object}
        yield "content_part.added", self._told(part=self._written())

    def add(self, text: str, logprobs: list[dict[str, Any]]) -> Told:
        """More of the text. Thoughts have no logprobs."""
        self._pieces.append(text)
        if self.kind != "message":
            return f"{self._part['type']}.delta", self._told(delta=text)
        self._logprobs += logprobs
        return f"{self._part['type']}.delta", self._told(delta=text, logprobs=logprobs)

    def cut(self) -> None:
        """Nothing more comes, and nobody is told."""
        self.object = {**self.object, "status": "incomplete", "content": [self._written()]}

    def close(self, status: str) -> Iterator[Told]:
        """The text is whole, so are its part and the item."""
        part = self._written()
        done = {name: part[name] for name in ("text", "logprobs") if name in part}
        yield f"{part['type']}.done", self._told(**done)
        yield "content_part.done", self._told(part=part)
        self.object = {**self.object, "status": status, "content": [part]}
        yield "output_item.done", {"output_index": self._index, "item": self.object}

    def _written(self) -> dict[str, Any]:
        part = {**self._part, "text": "".join(self._pieces)}
        return {**part, "logprobs": self._logprobs} if self.kind == "message" else part

    def _told(self, **fields: Any) -> dict[str, Any]:
        return {"item_id": self.object["id"], "output_index": self._index, "content_index": 0, **fields}


def call_item(call: ToolCall, id: str, call_id: str) -> dict[str, Any]:
    """A call that the model asks for."""
    named = {"id": id, "type": "function_call", "call_id": call_id, "name": call.name}
    return {**named, "arguments": call.arguments, "status": "completed"}


def call_told(item: dict[str, Any], index: int) -> Iterator[Told]:
    """The events of a call, which comes whole."""
    where = {"item_id": item["id"], "output_index": index}
    yield "output_item.added", {"output_index": index, "item": {**item, "arguments": "", "status": "in_progress"}}
    yield "function_call_arguments.delta", {**where, "delta": item["arguments"]}
    yield "function_call_arguments.done", {**where, "name": item["name"], "arguments": item["arguments"]}
    yield "output_item.done", {"output_index": index, "item": item}
