"""vLLM's loading of adapters from folders: what it publishes, and that nothing outside the root is read."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest

from loramux_server.core.backend import EngineInfo
from loramux_server.core.callers.principal import Principal, Scope
from loramux_server.services.access import refusals
from loramux_server.services.access.credentials import Credentials
from loramux_server.services.adapters.folders import _enter
from tests.unit.services.adapter_files import WEIGHTS, config_bytes, weights_bytes, write_adapter

from .conftest import Http


class Admins:
    """An administrator and a user of each of two tenants."""

    async def authenticate(self, credentials: Credentials) -> Principal:
        for tenant in ("acme", "other"):
            if credentials.authorization == (f"Bearer {tenant} admin",):
                return Principal(tenant, frozenset(Scope), f"{tenant}-a")
            if credentials.authorization == (f"Bearer {tenant} user",):
                return Principal(tenant, frozenset(Scope) - {Scope.ADMIN}, f"{tenant}-u")
        raise refusals.invalid()


@pytest.fixture
def root(http: Http, info: EngineInfo, tmp_path: Path) -> Path:
    """The root that the server allows, with the folder of an adapter in it."""
    http.access.authenticator = Admins()
    assert http.availability.services is not None
    write_adapter(tmp_path / "root" / "acme", info)
    (tmp_path / "root" / "acme" / "README.md").write_text("Not of the adapter.")
    http.availability.services = replace(http.availability.services, lora_root=tmp_path / "root")
    return tmp_path / "root"


async def ask(http: Http, what: str, key: str = "acme admin", **body: Any) -> httpx2.Response:
    headers = {"authorization": f"Bearer {key}"}
    return await http.raw.post(f"/v1/{what}_lora_adapter", json=body, headers=headers)


async def load(http: Http, path: object, name: str = "shop", **more: Any) -> httpx2.Response:
    return await ask(http, "load", lora_name=name, lora_path=str(path), **more)


async def models(http: Http, key: str = "acme admin") -> list[str]:
    answer = await http.raw.get("/v1/models", headers={"authorization": f"Bearer {key}"})
    return [model["id"] for model in answer.json()["data"]]


async def test_a_folder_is_a_version_like_any_other(http: Http, root: Path, info: EngineInfo) -> None:
    answer = await load(http, root / "acme", lora_int_id=7)
    assert (answer.status_code, answer.text) == (200, "Success: LoRA adapter 'shop' added successfully.")
    assert await models(http) == ["base", "shop"]
    again = await load(http, "acme")
    assert (again.status_code, again.json()["error"]["param"]) == (400, "lora_name")
    assert "load_inplace" in again.text
    (root / "acme" / WEIGHTS).write_bytes(weights_bytes(info, b=0.125))
    assert (await load(http, "acme", load_inplace=True)).status_code == 200
    found = await http.raw.get("/v1/models/shop", headers={"authorization": "Bearer acme user"})
    assert found.json()["root"] == "shop@2"
    answer = await ask(http, "unload", lora_name="shop")
    assert (answer.status_code, answer.text) == (200, "Success: LoRA adapter 'shop' removed successfully.")
    assert await models(http) == ["base"]
    assert (await ask(http, "unload", lora_name="shop")).status_code == 404


async def test_it_is_for_operators_and_where_a_root_is_set(http: Http, root: Path) -> None:
    for what in ("load", "unload"):
        answer = await ask(http, what, "acme user", lora_name="shop", lora_path="acme")
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "scope_missing")
    assert http.availability.services is not None
    http.availability.services = replace(http.availability.services, lora_root=None)
    for answer in (await load(http, root / "acme"), await ask(http, "unload", lora_name="shop")):
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "no_lora_root")
        assert "--lora-root" in answer.text


async def test_nothing_outside_the_root_is_read(http: Http, root: Path, info: EngineInfo) -> None:
    outside = write_adapter(root.parent / "outside", info, b=0.25)
    (root / "way").symlink_to(outside)
    (root / "up").symlink_to("..")
    (root / "part").mkdir()
    (root / "part" / "adapter_config.json").write_bytes(config_bytes())
    (root / "part" / WEIGHTS).symlink_to(outside / WEIGHTS)
    for path in (
        *(outside, "../outside", "acme/../../outside", f"{root}/../outside", "way", "up/outside", "part"),
        *("/", "/etc", "", ".", "..", "nowhere", "acme/README.md", "a\0b", "x" * 5000, "~"),
    ):
        answer = await load(http, path)
        assert answer.status_code in (400, 404), path
        assert str(path).startswith("/") or str(root.parent) not in answer.text
        assert await models(http) == ["base"], path
    assert (await load(http, "way")).json()["error"]["code"] == "lora_path_not_found"


async def test_links_that_stay_below_the_root_are_followed(http: Http, root: Path) -> None:
    """As in a cache of a hub, whose folders hold links to files beside them."""
    (root / "blobs").mkdir()
    os.rename(root / "acme" / WEIGHTS, root / "blobs" / "1")
    (root / "acme" / WEIGHTS).symlink_to("../blobs/1")
    (root / "latest").symlink_to("acme")
    assert (await load(http, "latest")).status_code == 200


async def test_a_link_that_comes_after_the_look_is_not_followed(root: Path) -> None:
    (root / "way").symlink_to(root.parent)
    with ExitStack() as stack, pytest.raises(OSError, match="way"):
        _enter(root, ("way",), stack)


async def test_what_is_no_file_is_not_waited_for(http: Http, root: Path) -> None:
    (root / "acme" / WEIGHTS).unlink()
    os.mkfifo(root / "acme" / WEIGHTS)
    assert (await load(http, "acme")).status_code == 404


async def test_folders_are_checked_as_uploads_are(http: Http, root: Path) -> None:
    (root / "acme" / WEIGHTS).write_bytes(b"\x80\x02junk")
    assert (await load(http, "acme")).json()["error"]["code"] == "bad_adapter_file"
    (root / "empty").mkdir()
    assert (await load(http, "empty")).status_code == 400
    assert (await load(http, "acme", name="Not/a name")).json()["error"]["param"] == "lora_name"
    assert await models(http) == ["base"]
    held = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        await load(http, "acme")
    assert len(os.listdir("/proc/self/fd")) <= held + 2


async def test_unloading_keeps_what_no_folder_has(http: Http, root: Path, info: EngineInfo) -> None:
    assert (await load(http, "acme")).status_code == 200

    async def chunks() -> Any:
        yield "adapter_config.json", config_bytes()
        yield WEIGHTS, weights_bytes(info, b=0.75)

    assert http.availability.services is not None
    await http.availability.services.adapters.upload("shop", chunks(), Principal("acme", frozenset(Scope), "x"))
    answer = await ask(http, "unload", lora_name="shop")
    assert answer.status_code == 400
    assert "did not come from a folder (2)" in answer.text
    assert await models(http) == ["base", "shop"]


async def test_another_tenants_adapter_cannot_be_unloaded_or_seen(http: Http, root: Path) -> None:
    assert (await load(http, "acme")).status_code == 200
    theirs = await ask(http, "unload", "other admin", lora_name="shop")
    absent = await ask(http, "unload", "other admin", lora_name="none")
    assert (theirs.status_code, theirs.text.replace("shop", "none")) == (404, absent.text)
    assert (await ask(http, "load", "other admin", lora_name="shop", lora_path="acme")).status_code == 200
    assert await models(http, "other user") == ["base", "shop"]
    assert (await ask(http, "unload", "other admin", lora_name="shop")).status_code == 200
    assert await models(http) == ["base", "shop"]
