"""The events that tell of a response piece by piece; the object at their end is the answer without a stream."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Iterator
from contextlib import aclosing
from typing import Any

from ....core.errors import Error
from ....core.types import Chunk, FinishReason, model_name
from ....text.answers.reasoning import Thought
from ....text.answers.tool_calls import ToolCall, new_call_id
from ...bodies.parts import AnswerFormat, PartReader
from ..answer import logprob_of
from .items import TextItem, Told, call_item, call_told
from .objects import ResponseObject


class Events:
    """Takes the chunks of an answer; ``response`` grows with its events."""

    def __init__(self, response: ResponseObject, format: AnswerFormat) -> None:
        self._response, self._format = response, format
        self._reader = PartReader(format)
        self._text: TextItem | None = None
        """The item that is being written."""
        self._unread: list[Chunk] = []
        """Chunks that have made no part yet."""
        self._thought = 0
        self._number = 0
        self._finish: FinishReason | None = None

    async def of(self, chunks: AsyncGenerator[Chunk]) -> AsyncGenerator[dict[str, Any]]:
        """All events, in order."""
        async with aclosing(chunks):
            async for chunk in chunks:
                if not self._response.model:
                    self._response.model = model_name(chunk.adapters)
                    yield self._event("created")
                    yield self._event("in_progress")
                for event in self._numbered(self._said(chunk)):
                    yield event
        for event in self._numbered(self._last_item()):
            yield event
        yield self._event(self._response.end(cut=self._finish is FinishReason.LENGTH))

    def failed(self, error: Error) -> dict[str, Any]:
        """The last event of a response that an error ends."""
        if self._text is not None:
            self._text.cut()
            self._response.output[-1] = self._text.object
        self._response.fail(error)
        return self._event("failed")

    def _said(self, chunk: Chunk) -> Iterator[Told]:
        self._unread.append(chunk)
        self._finish = chunk.finish_reason or self._finish
        for part in self._reader.push(chunk):
            match part:
                case Thought(text):
                    self._thought += sum(len(chunk.token_ids) for chunk in self._unread)
                    yield from self._written("reasoning", text)
                case ToolCall():
                    yield from self._closed()
                    yield from self._called(part)
                case text:
                    yield from self._written("message", text)
            self._unread = []
        if chunk.usage is not None:
            self._response.use(chunk.usage, self._thought)

    def _last_item(self) -> Iterator[Told]:
        if not self._response.output:
            yield from self._opened("message")
        yield from self._closed("incomplete" if self._finish is FinishReason.LENGTH else "completed")

    def _written(self, kind: str, text: str) -> Iterator[Told]:
        if self._text is None or self._text.kind != kind:
            yield from self._closed()
            yield from self._opened(kind)
        assert self._text is not None
        yield self._text.add(text, [logprob_of(entry) for chunk in self._unread for entry in chunk.logprobs])

    def _opened(self, kind: str) -> Iterator[Told]:
        output = self._response.output
        self._text = TextItem(kind, self._response.item_id("msg" if kind == "message" else "rs"), len(output))
        output.append(self._text.object)
        yield from self._text.open()

    def _closed(self, status: str = "completed") -> Iterator[Told]:
        if self._text is not None:
            yield from self._text.close(status)
            self._response.output[-1] = self._text.object
            self._text = None

    def _called(self, call: ToolCall) -> Iterator[Told]:
        output = self._response.output
        output.append(call_item(call, self._response.item_id("fc"), new_call_id(self._format.tools)))
        yield from call_told(output[-1], len(output) - 1)

    def _numbered(self, told: Iterable[Told]) -> Iterator[dict[str, Any]]:
        for type, fields in told:
            yield {"type": f"response.{type}", "sequence_number": self._number, **fields}
            self._number += 1

    def _event(self, type: str) -> dict[str, Any]:
        (event,) = self._numbered([(type, {"response": self._response.shown()})])
        return event
