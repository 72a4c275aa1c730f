"""Answers of the door held against its own ``/openapi.json``."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import jsonschema

EVENTS = "text/event-stream"
ALWAYS = {
    *("content-type", "content-length", "transfer-encoding", "date"),
    *("connection", "cache-control", "vary", "content-disposition"),
}
OF_ALL = {"x-request-id", "request-id"}
OF_REFUSALS = {"retry-after-ms", "x-should-retry", "www-authenticate", "allow"}


class Conforming:
    """Compares each answer with what the document says of its operation; fields that it does not know are wrong too."""

    def __init__(self, document: dict[str, Any]) -> None:
        self._document = copy.deepcopy(document)
        for schema in self._document["components"]["schemas"].values():
            if "properties" in schema:
                schema.setdefault("additionalProperties", False)
        self._paths = [(_pattern(path), operations) for path, operations in self._document["paths"].items()]

    async def check(self, answer: httpx2.Response) -> None:
        """Fail unless the answer is as the document says. An event hook of a client."""
        operation = self._operation(answer.request)
        if operation is None:
            return  # a page of the console, or a path that is none
        told = operation["responses"].get(str(answer.status_code))
        told = told or operation["responses"][f"{answer.status_code // 100}XX"]
        kind = answer.headers["content-type"].partition(";")[0]
        assert kind in told["content"], (kind, operation["operationId"])
        unknown = set(answer.headers) - told.get("headers", {}).keys() - ALWAYS
        assert unknown <= (OF_ALL if answer.is_success else OF_ALL | OF_REFUSALS), unknown
        schema = told["content"][kind].get("schema", {})
        if kind == EVENTS:
            answer.stream = _Checked(answer.stream, self, schema["x-event"])
        elif kind == "application/json":
            self.validate(json.loads(await answer.aread()), schema)

    def validate(self, value: Any, schema: dict[str, Any]) -> None:
        """Fail unless ``value`` fits."""
        jsonschema.Draft202012Validator({**schema, "components": self._document["components"]}).validate(value)

    def _operation(self, request: httpx2.Request) -> dict[str, Any] | None:
        for pattern, operations in self._paths:
            if pattern.fullmatch(request.url.path) and request.method.lower() in operations:
                found: dict[str, Any] = operations[request.method.lower()]
                return found
        return None


class _Checked(httpx2.AsyncByteStream):
    """A stream of events, each compared as it passes."""

    def __init__(self, stream: Any, conforming: Conforming, schema: dict[str, Any]) -> None:
        self._stream, self._conforming, self._schema = stream, conforming, schema

    async def __aiter__(self) -> AsyncIterator[bytes]:
        left = b""
        async for piece in self._stream:
            *lines, left = (left + piece).split(b"\n")
            for line in lines:
                if line.startswith(b"data: {"):
                    value = json.loads(line.removeprefix(b"data: "))
                    if value.keys() != {"error"}:
                        self._conforming.validate(value, self._schema)
            yield piece

    async def aclose(self) -> None:
        await self._stream.aclose()


def _pattern(path: str) -> re.Pattern[str]:
    """Of the paths that a template means; a model may have slashes in its name."""
    parts = (re.escape(part) for part in re.split(r"\{\w+\}", path))
    return re.compile((".+" if "{model}" in path else "[^/]+").join(parts))
