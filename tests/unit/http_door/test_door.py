"""What every path of the HTTP door has: identity, errors, health; and completions and models."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import openai
import pytest

from loramux_server.config import Address
from loramux_server.core.backend import EngineInfo
from loramux_server.core.callers.principal import LOCAL, Principal, Scope
from loramux_server.core.errors import Error
from loramux_server.http.routes import METHODS, full_name
from loramux_server.http.server import HttpServer
from loramux_server.services.access import refusals
from loramux_server.services.access.credentials import Credentials
from loramux_server.services.access.methods import METHODS as TABLE
from loramux_server.services.access.methods import require_all
from loramux_server.services.availability import Readiness
from tests.unit.services.adapter_files import write_adapter

from .conftest import Http


class Keys:
    """Knows two keys."""

    async def authenticate(self, credentials: Credentials) -> Principal:
        known = {
            ("Bearer reader",): Principal("acme", frozenset({Scope.INFER}), "r"),
            ("Bearer owner",): Principal("acme", frozenset(Scope), "o"),
        }
        found = known.get(credentials.authorization)
        if found is None:
            raise refusals.invalid() if credentials.authorization else refusals.missing()
        return found


def test_every_route_is_in_the_table_of_methods() -> None:
    require_all(map(full_name, METHODS))
    assert {name for name in TABLE if name.startswith(("openai.", "anthropic."))} == set(map(full_name, METHODS))


async def test_nothing_is_answered_without_a_key_but_health(http: Http) -> None:
    http.access.authenticator = Keys()
    for method, path in METHODS.values():
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic owner"}):
            answer = await http.raw.request(method, path.replace("{model:path}", "acme"), headers=headers)
            assert answer.status_code == 401, (path, answer.text)
            assert answer.json()["error"]["type"] == "authentication_error"
            assert answer.headers["www-authenticate"] == "Bearer"
    for path in ("/health", "/health/live", "/health/ready", "/version"):
        assert (await http.raw.get(path)).status_code == 200
    client = http.openai.with_options(api_key="reader")
    assert [model.id async for model in await client.models.list()] == ["base"]
    with pytest.raises(openai.PermissionDeniedError, match="adapters:write"):
        await client.models.delete("acme")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([("x-api-key", "reader")], 200),
        ([("x-api-key", "reader"), ("authorization", "Bearer reader")], 200),
        ([("x-api-key", ""), ("authorization", "Bearer reader")], 200),
        ([("x-api-key", "")], 401),
        ([("x-api-key", "wrong")], 401),
        ([("x-api-key", "owner"), ("authorization", "Bearer reader")], 401),
        ([("x-api-key", "wrong"), ("authorization", "Bearer reader")], 401),
        ([("x-api-key", "reader"), ("authorization", "Basic reader")], 401),
        ([("x-api-key", "reader"), ("x-api-key", "reader")], 401),
        ([("x-api-key", "reader"), ("x-api-key", "owner")], 401),
    ],
)
async def test_a_key_in_a_header_of_its_own(http: Http, headers: list[tuple[str, str]], status: int) -> None:
    """It is the same bearer, and two that differ are none."""
    http.access.authenticator = Keys()
    assert (await http.raw.get("/v1/models", headers=headers)).status_code == status


async def test_paths_and_methods_that_do_not_exist(http: Http) -> None:
    answer = await http.raw.get("/v1/nothing")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
    answer = await http.raw.get("/v1/chat/completions")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")


async def test_health_follows_the_server(http: Http) -> None:
    assert (await http.raw.get("/health")).json() == {"status": "ready"}
    await http.server.set_serving(False)
    assert (await http.raw.get("/health/ready")).status_code == 503
    http.availability.readiness = Readiness.DRAINING
    assert (await http.raw.get("/health")).status_code == 503
    assert (await http.raw.get("/health/live")).status_code == 200
    answer = await http.raw.post("/v1/completions", json={"model": "base", "prompt": "x"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "shutting_down")


async def test_a_defect_tells_an_id_and_nothing_else(http: Http, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(command: object) -> Any:
        raise KeyError("/secret/path")

    http.backend.script = broken
    answer = await http.raw.post("/v1/completions", json={"model": "base", "prompt": "x"})
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert answer.json()["error"]["type"] == "server_error"


async def test_a_taken_port_names_the_flag(http: Http) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = Address("127.0.0.1", taken.getsockname()[1])
        server = HttpServer(http.availability, http.server.calls, address)
        with pytest.raises(Error, match=f"{address}.*--http-listen"):
            await server.start()
        await server.stop()


async def test_completions(http: Http) -> None:
    http.answers("Paris.")
    done = await http.openai.completions.create(model="base", prompt=["The capital of France", "x"], n=2, logprobs=1)
    assert [(c.index, c.text) for c in done.choices] == [(i, "Paris.") for i in range(4)]
    stream = await http.openai.completions.create(
        model="base", prompt="x", stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert "".join(c.text for chunk in chunks for c in chunk.choices) == "Paris."
    assert chunks[-1].usage is not None
    with pytest.raises(openai.BadRequestError, match="echo"):
        await http.openai.completions.create(model="base", prompt="x", echo=True)


async def test_adapters_are_models(http: Http, info: EngineInfo, tmp_path: Path) -> None:
    for name in ("acme", "json"):
        folder = write_adapter(tmp_path / name, info, b=0.25 if name == "acme" else 0.5)
        files = [(file.name, file.read_bytes()) for file in folder.iterdir()]

        async def chunks(files: list[tuple[str, bytes]] = files) -> Any:
            for each in files:
                yield each

        assert http.availability.services is not None
        await http.availability.services.adapters.upload(name, chunks(), LOCAL)
    await http.availability.services.adapters.set_alias("acme", 1, LOCAL, alias="prod")
    listed = {m.id: m.model_dump() async for m in await http.openai.models.list()}
    assert [*listed] == ["base", "acme", "acme@prod", "json"]
    assert (listed["acme@prod"]["root"], listed["acme@prod"]["parent"]) == ("acme@1", "base")
    assert (await http.openai.models.retrieve("acme")).model_dump()["root"] == "acme@1"
    assert (await http.openai.models.retrieve("acme@prod")).id == "acme@prod"
    http.answers("x")
    done = await http.openai.completions.create(model="acme@prod+json:0.5", prompt="x")
    assert done.model == "acme@1+json@1:0.5"
    body: Any = {"adapters": [{"name": "json", "weight": 0.5}, {"name": "acme"}]}
    done = await http.openai.completions.create(model="base", prompt="x", extra_body=body)
    assert done.model == "json@1:0.5+acme@1"
    assert [e.weight for e in http.backend.commands[-1].stack.entries] == [0.5, 1.0]
    lora: Any = [{"id": "json", "scale": 0.5}, {"id": "acme"}]
    for path, asked in (
        ("completions", {"prompt": "x"}),
        ("chat/completions", {"messages": [{"role": "user", "content": "x"}]}),
    ):
        answer = await http.raw.post(f"/v1/{path}", json={"model": "base", **asked, "lora": lora})
        assert answer.json()["model"] == "json@1:0.5+acme@1"
    listed_there = (await http.raw.get("/lora-adapters")).json()
    assert listed_there == [{"id": n, "path": f"{n}@1", "scale": 0.0} for n in ("acme", "json")]
    for changes, param in (
        ({"adapters": [{"name": "acme"}]}, "lora"),
        ({"model": "acme"}, "lora"),
        ({"lora": [{"id": 0, "scale": 1.0}]}, "lora[0].id"),
        ({"lora": [{"name": "acme"}]}, "lora[0].id"),
    ):
        answer = await http.raw.post("/v1/completions", json={"model": "base", "prompt": "x", "lora": lora, **changes})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text
    assert (await http.openai.models.delete("json")).deleted
    with pytest.raises(openai.NotFoundError):
        await http.openai.models.retrieve("json")
    with pytest.raises(openai.BadRequestError):
        await http.openai.models.delete("base")
