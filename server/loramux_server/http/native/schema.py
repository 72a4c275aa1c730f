"""The methods of ``loramux.v1`` for ``/openapi.json``, from the descriptors that they are served by."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from google.protobuf.descriptor import FieldDescriptor

from ...api.methods import Method
from ...services.access.methods import METHODS as ASKED
from ..bodies.multipart import FORM_TYPE
from ..exchanges.exchange import JSON_TYPE
from .messages import Descriptor, gives_files, is_map

SCHEMAS = "#/components/schemas/"
ERROR = "loramux.v1.Error"
_KINDS: dict[int, dict[str, Any]] = {
    FieldDescriptor.CPPTYPE_INT32: {"type": "integer", "format": "int32"},
    FieldDescriptor.CPPTYPE_UINT32: {"type": "integer", "format": "uint32"},
    FieldDescriptor.CPPTYPE_INT64: {"type": ["string", "integer"], "format": "int64"},
    FieldDescriptor.CPPTYPE_UINT64: {"type": ["string", "integer"], "format": "uint64"},
    FieldDescriptor.CPPTYPE_DOUBLE: {"type": ["number", "string"], "format": "double"},
    FieldDescriptor.CPPTYPE_FLOAT: {"type": ["number", "string"], "format": "float"},
    FieldDescriptor.CPPTYPE_BOOL: {"type": "boolean"},
    FieldDescriptor.CPPTYPE_STRING: {"type": "string"},
}


def native_paths(methods: Iterable[Method]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Paths, and the schemas that they name."""
    schemas: dict[str, Any] = {
        ERROR: {
            "type": "object",
            "description": "Connect's error.",
            "properties": {
                "code": {"type": "string"},
                "message": {"type": "string"},
                "details": {"type": "array", "items": {"type": "object"}},
            },
            "required": ["code", "message"],
        }
    }
    return {f"/{method.full_name}": {"post": _operation(method, schemas)} for method in methods}, schemas


def _operation(method: Method, schemas: dict[str, Any]) -> dict[str, Any]:
    descriptor, scope = method.descriptor, ASKED[method.full_name].scope
    taken = _message(descriptor.input_type, schemas)
    answered: Any = {JSON_TYPE: {"schema": _message(descriptor.output_type, schemas)}}
    if gives_files(descriptor.output_type):
        answered = {"application/zip": {}}
    elif descriptor.server_streaming:
        events = {"type": "string", "description": "server-sent events; the data of each fits x-event"}
        answered = {"text/event-stream": {"schema": {**events, "x-event": answered[JSON_TYPE]["schema"]}}}
    content: Any = {JSON_TYPE: {"schema": taken}}
    if descriptor.client_streaming:
        header = _message(descriptor.input_type.fields_by_name["header"].message_type, schemas)
        form = {"type": "object", "properties": {"header": header}, "required": ["header"]}
        content = {FORM_TYPE: {"schema": {**form, "additionalProperties": {"type": "string", "format": "binary"}}}}
    refused = {"content": {JSON_TYPE: {"schema": {"$ref": SCHEMAS + ERROR}}}}
    return {
        "operationId": descriptor.full_name,
        "summary": f"{descriptor.name} of {descriptor.containing_service.full_name}.",
        "description": "Any key." if scope is None else f"Needs the scope `{scope.value}`.",
        "tags": [descriptor.containing_service.full_name],
        "security": [{"bearer": []}],
        "parameters": [],
        "requestBody": {"required": True, "content": content},
        "responses": {
            "200": {"description": "What was asked for.", "content": answered},
            "4XX": {"description": "The request is refused; the error says why.", **refused},
            "5XX": {"description": "The server cannot answer now, or has failed.", **refused},
        },
    }


def _message(descriptor: Descriptor, schemas: dict[str, Any]) -> dict[str, Any]:
    """A reference to the schema of a message, which is made with all that it holds."""
    name = descriptor.full_name
    if name not in schemas:
        schemas[name] = made = {"type": "object", "additionalProperties": False}
        made["properties"] = {field.json_name: _field(field, schemas) for field in descriptor.fields}
    return {"$ref": SCHEMAS + name}


def _field(field: FieldDescriptor, schemas: dict[str, Any]) -> dict[str, Any]:
    if field.message_type is not None and is_map(field):
        return {"type": "object", "additionalProperties": _one(field.message_type.fields_by_name["value"], schemas)}
    one = _one(field, schemas)
    return {"type": "array", "items": one} if field.is_repeated else one


def _one(field: FieldDescriptor, schemas: dict[str, Any]) -> dict[str, Any]:
    if field.message_type is not None:
        if field.message_type.full_name.startswith("google.protobuf."):
            return {}  # forms of their own, such as times as text
        return _message(field.message_type, schemas)
    if field.enum_type is not None:
        return {"type": "string", "enum": [value.name for value in field.enum_type.values]}
    if field.type == FieldDescriptor.TYPE_BYTES:
        return {"type": "string", "contentEncoding": "base64"}
    return _KINDS[field.cpp_type]
