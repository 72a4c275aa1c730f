"""``/openapi.json`` has all operations, each with what it takes and gives."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest

from loramux_server.api.methods import METHODS as NATIVE
from loramux_server.http.description.describe import describe
from loramux_server.http.description.openapi import Operation, document
from loramux_server.http.routes import METHODS, OPEN

from .conforming import Conforming
from .conftest import Http


def operations(told: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {each["operationId"]: each for path in told["paths"].values() for each in path.values()}


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(reference := value.get("$ref"), str):
            yield reference
        for each in value.values():
            yield from references(each)
    elif isinstance(value, list):
        for each in value:
            yield from references(each)


async def test_the_document_has_every_operation(http: Http) -> None:
    answer = await http.raw.get("/openapi.json")
    told = answer.json()
    assert told["openapi"] == "3.1.0"
    found = operations(told)
    assert found.keys() == {*METHODS, *OPEN, *(name.replace("/", ".") for name in NATIVE)}
    for id, operation in found.items():
        takes_a_body = METHODS.get(id, ("GET", ""))[0] == "POST" and "{" not in METHODS[id][1]
        assert ("requestBody" in operation) >= takes_a_body, id
        (success, *_) = operation["responses"].values()
        assert success["content"], id
        assert bool(operation["security"]) == (id not in OPEN), id
        assert operation["summary"].endswith("."), id
    for schema in told["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)
    for reference in set(references(told)):
        at: Any = told
        for key in reference.removeprefix("#/").split("/"):
            at = at[key]


async def test_the_document_tells_forms_events_queries_and_scopes(http: Http) -> None:
    found = operations((await http.raw.get("/openapi.json")).json())
    form = found["createFile"]["requestBody"]["content"]
    assert [*form] == ["multipart/form-data"]
    chat = found["createChatCompletion"]
    assert [*chat["responses"]["200"]["content"]] == ["application/json", "text/event-stream"]
    assert "`infer`" in chat["description"]
    metadata = next(p for p in found["listPaginatedFineTuningJobs"]["parameters"] if p["name"] == "metadata")
    assert (metadata["in"], metadata["style"]) == ("query", "deepObject")
    for parameter in (each for operation in found.values() for each in operation.get("parameters", ())):
        kinds = parameter["schema"].get("anyOf", ())
        assert all(kind.get("type") != "null" for kind in kinds), f"a query or header has no null: {parameter}"
    model = found["retrieveModel"]["parameters"]
    assert [(p["name"], p["in"], p["required"]) for p in model[:1]] == [("model", "path", True)]
    assert found["downloadFile"]["responses"]["200"]["content"].keys() == {"application/octet-stream"}


def test_an_operation_of_which_nothing_is_said_cannot_be_served() -> None:
    async def handler(exchange: object) -> None: ...

    with pytest.raises(LookupError, match="@describe"):
        Operation("x", "GET", "/x", handler, None)
    assert document([Operation("x", "GET", "/x", describe(answer=str)(handler), None)])["paths"]["/x"]


async def test_a_field_that_is_not_told_is_found(http: Http) -> None:
    conforming = Conforming((await http.raw.get("/openapi.json")).json())
    schema = {"$ref": "#/components/schemas/Model"}
    model = (await http.raw.get("/v1/models/base")).json()
    conforming.validate(model, schema)
    for wrong in ({**model, "extra": 1}, {**model, "created": "today"}, {"id": "base"}):
        with pytest.raises(jsonschema.ValidationError):
            conforming.validate(wrong, schema)
