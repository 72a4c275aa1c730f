"""Arguments of every wrong type: a LoramuxError that names the argument, and nothing is sent."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest

from loramux import AsyncClient, Client, InvalidArgument, LoramuxError
from loramux._wire.messages.fields import shown
from loramux._wire.messages.requests import GenerateOptions
from loramux._wire.messages.train_requests import TrainOptions
from loramux.convert import convert
from loramux.v1 import training_pb2

from .fake import Fake

ODD: tuple[Any, ...] = (
    5,
    -(1 << 70),
    10**400,
    10**5000,
    1.5,
    float("nan"),
    True,
    "x",
    "\ud800",
    b"x",
    [1],
    ["x"],
    [None],
    [[1]],
    {"a": [1]},
    {"a": {"b": 1}},
    {1: 2},
    [{"role": "user", "content": "a", 1: 2, "b": 3}],
    "9" * 5000,
    {1},
    ("x", "y", "z"),
    object(),
    lambda: None,
    Path("x"),
    iter([1]),
)
# What a call needs beside the argument that is wrong.
GOOD: dict[str, Any] = {"name": "acme", "ref": "acme", "version": 1, "job_id": "job-1", "adapters": ["acme"]}
METHODS = {
    "": ("generate", "score", "tokenize", "train", "info", "health"),
    "adapters": ("list", "get", "upload", "download", "compose", "delete", "set_alias", "pin", "unpin"),
    "datasets": ("upload", "validate", "show"),
    "jobs": ("create", "list", "get"),
}


def calls() -> Iterator[tuple[str, str, str]]:
    """(resource, method, argument) of everything that a caller can get wrong."""
    for resource, names in METHODS.items():
        for name in names:
            owner: Any = Client if not resource else type(getattr(Client("localhost:1"), resource))
            for argument, found in inspect.signature(getattr(owner, name)).parameters.items():
                if found.kind is inspect.Parameter.VAR_KEYWORD:
                    options = {"generate": GenerateOptions, "train": TrainOptions}.get(name)
                    yield from ((resource, name, option) for option in (get_type_hints(options) if options else ()))
                elif argument != "self":
                    yield resource, name, argument


def method(client: Any, resource: str, name: str) -> Callable[..., Any]:
    return getattr(getattr(client, resource) if resource else client, name)


def needed(name: str, argument: str, rows: list[dict[str, str]], folder: Path) -> dict[str, Any]:
    given: dict[str, Any] = dict(GOOD, data=rows, folder=folder, continuation="b")
    wanted = {
        **dict.fromkeys(("generate", "tokenize"), ()),
        "score": ("continuation",),
        **dict.fromkeys(("train", "create"), ("name", "data")),
        **dict.fromkeys(("get", "delete", "pin", "unpin"), ("ref",)),
        **dict.fromkeys(("upload",), ("name", "folder")),
        "download": ("ref", "folder"),
        "compose": ("name", "adapters"),
        "set_alias": ("name", "version"),
        **dict.fromkeys(("validate", "show"), ("data",)),
    }.get(name, ())
    found = {key: given[key] for key in wanted}
    if name in ("generate", "score", "tokenize") and argument not in ("prompt", "messages"):
        found["prompt"] = "a"
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"x")
    return tmp_path


@pytest.mark.parametrize(("resource", "name"), [(r, n) for r, names in METHODS.items() for n in names])
def test_field_34_every_wrong_type_is_a_loramux_error(
    fake: Fake, client: Client, folder: Path, resource: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)  # some of the odd values are paths that a download may be written to
    for owner, called, argument in calls():
        if (owner, called) != (resource, name):
            continue
        for odd in ODD:
            arguments = needed(name, argument, [{"text": "a"}], folder)
            if (resource, name) == ("datasets", "upload"):
                arguments = {"data": [{"text": "a"}]}
            elif (resource, name) == ("jobs", "get"):
                arguments = {}
            elif argument == "as_":
                arguments["data"] = [{"prompt": "a", "completion": "b"}]
            arguments[argument] = odd
            try:
                method(client, resource, name)(**arguments)
            except LoramuxError:
                continue  # the fake server takes what the client may send
            except BaseException as error:
                raise AssertionError(f"{resource}.{name}({argument}={shown(odd)}): {error!r}") from error


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"messages": 5}, "messages"),
        ({"messages": [5]}, "messages[0]"),
        ({"messages": "hello"}, "messages"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": {"a": 1}}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [5]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": [1], "content": "a"}]}, "messages[0].role"),
        ({"prompt": "a", "stop": 5}, "stop"),
        ({"prompt": "a", "stop": [5]}, "stop[0]"),
        ({"prompt": "a", "stop": {"a": 1}}, "stop"),
        ({"prompt": "a", "stop": b"x"}, "stop"),
        ({"prompt": "a", "n": [1]}, "n"),
        ({"prompt": "a", "n": {"a": 1}}, "n"),
        ({"prompt": "a", "seed": "7"}, "seed"),
        ({"prompt": "a", "stop_token_ids": 5}, "stop_token_ids"),
        ({"prompt": "a", "logit_bias": [1]}, "logit_bias"),
        ({"prompt": "a", "logit_bias": {"x": 1}}, "logit_bias"),
        ({"prompt": "a", "adapters": {"a": [1]}}, "adapters[0].weight"),
        ({"prompt": "a", "adapters": 5}, "adapters"),
        ({"prompt": "a", "adapters": b"acme"}, "adapters"),
        ({"prompt": "a", "timeout": "soon"}, "timeout"),
        ({"prompt": "a", "response_format": {"json_schema": object()}}, "response_format.json_schema"),
        ({"prompt": "a", "response_format": {"choice": 5}}, "response_format.choice"),
        ({"prompt": "a", "response_format": {"type": ["regex"]}}, "response_format"),
    ],
)
def test_field_34_the_error_names_the_field(fake: Fake, client: Client, arguments: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        client.generate(**arguments)
    assert [violation.field for violation in caught.value.violations] == [field]
    assert fake.requests == []


def test_field_34_rows_of_every_wrong_type_are_refused_before_they_are_turned(client: Client, tmp_path: Path) -> None:
    deep: Any = []
    for _ in range(5000):
        deep = [deep]
    row = {"prompt": "a", "completion": "b"}
    for data in (5, b"x", [5], "a\0", "a" * 5000, [{**row, "on_top_of": {1}}], [{**row, "on_top_of": deep}]):
        with pytest.raises(InvalidArgument) as caught:
            client.datasets.validate(data, as_="messages")  # type: ignore[arg-type]
        assert caught.value.violations[0].field.startswith("data")
    for source, target in ((5, "x"), ("a" * 5000, "x"), (tmp_path, "a" * 5000), (__file__, tmp_path / "no" / "x")):
        with pytest.raises(InvalidArgument):
            convert(source, target)  # type: ignore[arg-type]


def test_field_34_numbers_of_other_libraries_and_iterators_are_taken(fake: Fake, client: Client) -> None:
    client.generate("a", timeout=np.float32(20), max_tokens=np.int64(5))
    assert fake.last("GenerateOnce").max_tokens == 5
    client.generate("a", timeout=1e300)  # beyond what gRPC counts in, which it would take as over
    client.generate("a", timeout=10**300)
    client.jobs.list(limit=np.int64(2), states=iter(["running"]))
    assert list(fake.last("ListJobs").states) == [training_pb2.JOB_STATE_RUNNING]


def test_field_34_wrong_types_of_training(fake: Fake, client: Client) -> None:
    rows = [{"text": "a"}]
    for arguments, field in (
        ({"name": 5, "data": rows}, "name"),
        ({"name": "a", "data": 5}, "data"),
        ({"name": "a", "data": [5]}, "data[0]"),
        ({"name": "a", "data": rows, "epochs": [1]}, "epochs"),
        ({"name": "a", "data": rows, "metadata": {"a": 1}}, "metadata"),
        ({"name": "a", "data": rows, "metadata": "x"}, "metadata"),
        ({"name": "a", "data": rows, "on_top_of": 5}, "on_top_of"),
        ({"name": "a", "data": rows, "layers": 5}, "layers"),
        ({"name": "a", "data": rows, "target_modules": 5}, "target_modules"),
        ({"name": "a", "data": rows, "gate": 5}, "gate"),
    ):
        with pytest.raises(InvalidArgument) as caught:
            client.train(**arguments)  # type: ignore[arg-type]
        assert [violation.field for violation in caught.value.violations] == [field]
    assert fake.requests == []


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"address": 5}, "address"),
        ({"address": "localhost:1", "api_key": 5}, "api_key"),
        ({"address": "localhost:1", "timeout": "soon"}, "timeout"),
        ({"address": "localhost:1", "root_certificates": "pem"}, "root_certificates"),
    ],
)
def test_field_34_wrong_types_of_a_connection(arguments: dict[str, Any], field: str) -> None:
    async def connect() -> None:
        AsyncClient(**arguments)

    for attempt in (lambda: Client(**arguments), lambda: asyncio.run(connect())):
        with pytest.raises(InvalidArgument) as caught:
            attempt()
        assert [violation.field for violation in caught.value.violations] == [field]


def test_field_34_text_parts_are_joined(fake: Fake, client: Client) -> None:
    parts = [{"type": "text", "text": "When do "}, {"type": "text", "text": "you open?"}]
    client.generate(messages=[{"role": "user", "content": parts}])
    assert fake.last("GenerateOnce").messages[0].content == "When do you open?"


def test_field_34_the_async_client_refuses_the_same(fake: Fake) -> None:
    async def ask() -> None:
        async with AsyncClient(fake.address, timeout=20) as client:
            for arguments in ({"messages": 5}, {"prompt": "a", "n": [1]}, {"prompt": "a", "timeout": "soon"}):
                with pytest.raises(InvalidArgument):
                    await client.generate(**arguments)  # type: ignore[arg-type]
                with pytest.raises(InvalidArgument):
                    client.stream(**arguments)  # type: ignore[arg-type]

    asyncio.run(ask())
    assert fake.requests == []
