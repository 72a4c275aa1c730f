"""``/openapi.json``: OpenAPI 3.1 of all operations, made of the tables and the types that the door works with."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import TypeAdapter
from typing_extensions import TypedDict

from loramux import __version__

from ...api.methods import Method as NativeMethod
from ...services.access.methods import Method
from ..bodies.multipart import FORM_TYPE
from ..exchanges.exchange import EVENTS, JSON_TYPE
from ..native.schema import SCHEMAS, native_paths
from .describe import Shape, shape_of

INTRODUCTION = (
    "One base and a stack of LoRA adapters per request. A server without keys takes all calls without one. Field names"
    " are checked by these schemas, values and limits by the server, which answers 400 and names the field."
)
_PARAMETER = re.compile(r"\{(\w+)(?::\w+)?\}")
_ANSWER_HEADERS = {
    "x-request-id": "the id of the request: the caller's own, or a new one",
    "retry-after": "seconds after which to try again",
    "x-ratelimit-limit-requests": "the quota of requests in a minute",
    "x-ratelimit-limit-tokens": "the quota of tokens in a minute",
    "x-ratelimit-remaining-requests": "requests that are left now",
    "x-ratelimit-remaining-tokens": "tokens that are left now",
    "x-ratelimit-reset-requests": "time until all requests are back, such as 6m0s",
    "x-ratelimit-reset-tokens": "time until all tokens are back, such as 6m0s",
}


class Violation(TypedDict):
    """One bad field."""

    field: str
    description: str


class _ErrorBody(TypedDict):
    message: str
    type: str
    param: str | None
    code: str


class ErrorBody(_ErrorBody, total=False):
    """What went wrong; ``code`` is the reason, ``param`` the first bad field."""

    violations: list[Violation]


class ErrorObject(TypedDict):
    """Every refusal and failure."""

    error: ErrorBody


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation. ``asks_for`` None: anybody may ask."""

    id: str
    method: str
    path: str
    handler: Callable[..., Any]
    asks_for: Method | None
    shape: Shape = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", shape_of(self.handler))


def document(operations: list[Operation], native: Sequence[NativeMethod] = ()) -> dict[str, Any]:
    """The whole document."""
    schemas = _Schemas(operations)
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        path = _PARAMETER.sub(r"{\1}", operation.path)
        paths.setdefault(path, {})[operation.method.lower()] = _operation(operation, schemas)
    native_operations, native_schemas = native_paths(native)
    return {
        "openapi": "3.1.0",
        "info": {"title": "loramux", "version": __version__, "description": INTRODUCTION},
        "paths": paths | native_operations,
        "components": {
            "schemas": schemas.definitions | native_schemas,
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer", "description": "an API key"}},
            "headers": {
                name: {"description": text, "schema": {"type": "string"}} for name, text in _ANSWER_HEADERS.items()
            },
        },
    }


class _Schemas:
    """The JSON schemas of all types, each once."""

    def __init__(self, operations: list[Operation]) -> None:
        wanted: dict[tuple[int, Literal["validation", "serialization"]], Any] = {}
        for shape in (operation.shape for operation in operations):
            for type in filter(_is_named, (shape.body, shape.form, shape.query)):
                wanted[id(type), "validation"] = type
            for type in filter(_is_named, (shape.answer, shape.events, shape.error, ErrorObject)):
                wanted[id(type), "serialization"] = type
        inputs: Any = [(key, mode, TypeAdapter(type)) for (key, mode), type in wanted.items()]
        found, definitions = TypeAdapter.json_schemas(inputs, ref_template=SCHEMAS + "{model}")
        self.definitions: dict[str, Any] = definitions.get("$defs", {})
        self._found: Mapping[Any, Any] = found

    def taken(self, type: Any) -> dict[str, Any]:
        """The schema of what is taken."""
        schema: dict[str, Any] = self._found[id(type), "validation"]
        return schema

    def given(self, type: Any) -> dict[str, Any]:
        """The schema of what is given."""
        schema: dict[str, Any] = self._found[id(type), "serialization"]
        return schema

    def resolved(self, type: Any) -> dict[str, Any]:
        """The schema of what is taken, itself and no reference to it."""
        schema = self.taken(type)
        reference = schema.get("$ref")
        return self.definitions[reference.removeprefix(SCHEMAS)] if reference else schema


def _is_named(type: Any) -> bool:
    return type is not None


def _operation(operation: Operation, schemas: _Schemas) -> dict[str, Any]:
    shape = operation.shape
    summary, _, more = inspect.cleandoc(operation.handler.__doc__ or operation.id).partition("\n")
    described = {
        "operationId": operation.id,
        "summary": summary,
        "description": " ".join(filter(None, (" ".join(more.split()), _permission(operation.asks_for)))),
        "tags": [_tag(operation.path)],
        "security": [{"bearer": []}] if operation.asks_for is not None else [],
        "parameters": [*_in_path(operation.path), *_in_query(shape, schemas), *map(_in_header, shape.headers)],
        "responses": _responses(shape, schemas, known=operation.asks_for is not None),
    }
    if content := _content_taken(shape, schemas):
        described["requestBody"] = {"required": True, "content": content}
    return described


def _permission(method: Method | None) -> str:
    if method is None:
        return "Anybody may ask."
    return "Any key." if method.scope is None else f"Needs the scope `{method.scope.value}`."


def _tag(path: str) -> str:
    first, *rest = path.strip("/").split("/")
    return rest[0] if first == "v1" and rest else first


def _in_path(path: str) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        for name in _PARAMETER.findall(path)
    ]


def _in_query(shape: Shape, schemas: _Schemas) -> list[dict[str, Any]]:
    if shape.query is None:
        return []
    schema = schemas.resolved(shape.query)
    found = []
    for name, property in schema["properties"].items():
        property = _without_null(property)
        parameter = {"name": name, "in": "query", "required": name in schema.get("required", ()), "schema": property}
        if property.get("type") == "object":  # metadata[key]=value
            parameter |= {"style": "deepObject", "explode": True}
        found.append(parameter)
    return found


def _without_null(property: dict[str, Any]) -> dict[str, Any]:
    """The schema of a parameter that may be left out: a query has no null, and tools read a single type right."""
    kinds = [each for each in property.get("anyOf", ()) if each.get("type") != "null"]
    if len(kinds) != 1:
        return property
    return kinds[0] | {name: value for name, value in property.items() if name not in ("anyOf", "default")}


def _in_header(name: str) -> dict[str, Any]:
    return {"name": name, "in": "header", "required": False, "schema": {"type": "string"}}


def _content_taken(shape: Shape, schemas: _Schemas) -> dict[str, Any]:
    content: dict[str, Any] = {}
    if shape.body is not None:
        content[JSON_TYPE] = {"schema": schemas.taken(shape.body)}
    if shape.form is not None:
        content[FORM_TYPE] = {"schema": schemas.taken(shape.form)}
    return content


def _responses(shape: Shape, schemas: _Schemas, *, known: bool) -> dict[str, Any]:
    content: dict[str, Any] = {}
    if shape.answer is not None or shape.media != JSON_TYPE:
        content[shape.media] = {} if shape.answer is None else {"schema": schemas.given(shape.answer)}
    if shape.events is not None:
        media = EVENTS["content-type"].partition(";")[0]
        content[media] = {
            "schema": {
                "type": "string",
                "description": "server-sent events; the data of each fits x-event, or is [DONE]",
                "x-event": schemas.given(shape.events),
            }
        }
    headers = {name: {"$ref": f"#/components/headers/{name}"} for name in _ANSWER_HEADERS} if known else {}
    answer = {"description": "What was asked for.", **({"content": content} if content else {}), "headers": headers}
    refusal = {"content": {JSON_TYPE: {"schema": schemas.given(shape.error or ErrorObject)}}, "headers": headers}
    return {
        str(shape.status): answer,
        **{str(status): answer for status in shape.errors},
        "4XX": {"description": "The request is refused; the error says why.", **refusal},
        "5XX": {"description": "The server cannot answer now, or has failed.", **refusal},
    }
