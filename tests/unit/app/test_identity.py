"""Who may call a whole server: by a first key from a file, by tokens of a provider, and what it says about it."""

from __future__ import annotations

import asyncio
import json
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

import grpc
import pytest

from loramux import AsyncClient, Unauthenticated
from loramux_server.app.announce import Silent
from loramux_server.app.app import App
from loramux_server.app.maintenance import open_database
from loramux_server.config import Settings, load
from loramux_server.core.callers.keys import ApiKey
from loramux_server.core.callers.principal import DEFAULT_TENANT, SERVER_TENANT, Scope
from loramux_server.core.errors import Code, Error
from loramux_server.preflight import preflight
from loramux_server.services.access.key_file import read_key
from loramux_server.store.keys import KeyRecord, KeyTable
from loramux_server.store.store import Store
from tests.unit.services.fakes import FakeBackend, Script, engine_info
from tests.unit.services.tiny_tokenizer import write_tokenizer

KEY = ApiKey.generate()


class Heard(Silent):
    """What the server says."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture
def state(store: Store) -> Path:
    """A state directory that no server has."""
    store.close()
    return store.state.path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "bootstrap"
    put(path, KEY)
    return path


def put(file: Path, key: ApiKey) -> None:
    file.write_text(f"{key.text}\n")


async def started(state: Path, key: ApiKey | None = None, **settings: Any) -> tuple[str, list[KeyRecord]]:
    """Start a server, let ``key`` call it, stop it: what it said of who may call, and the keys that there are."""
    tokenizer = write_tokenizer(state.parent / "tokenizer")
    backend = FakeBackend(engine_info(400, tokenizer_path=str(tokenizer)))
    heard = Heard()
    app = App(
        Settings(state_dir=state, listen="127.0.0.1:0", http_listen="off", metrics_listen="off", **settings),
        backend,
        heard,
    )
    try:
        await app.start()
        if key is not None:
            async with AsyncClient(app.address, api_key=key.text) as client:
                await client.info()
            async with AsyncClient(app.address, api_key="") as client:
                with pytest.raises(Unauthenticated, match="asks for a key"):
                    await client.info()
    finally:
        await app.stop()
    with closing(open_database(app.settings)) as database:
        return heard.lines[0], list(KeyTable(database).list())


async def test_a_server_says_whether_it_is_open(state: Path, file: Path) -> None:
    said, keys = await started(state)
    assert said == "Open: there are no API keys, so whoever reaches this server may do everything."
    assert keys == []
    oidc = {"issuer": "http://127.0.0.1:1/realm", "audience": "loramux"}
    said, _ = await started(state, oidc=oidc)
    assert said == "Closed: callers need an API key or a token of http://127.0.0.1:1/realm."
    said, _ = await started(state, bootstrap_key=file)
    assert said == "Closed: callers need an API key."


async def test_the_bootstrap_key_is_created_once(state: Path, file: Path, tmp_path: Path) -> None:
    _, first = await started(state, KEY, bootstrap_key=file)
    assert [(key.id, key.tenant, set(key.scopes), key.adapters) for key in first] == [
        (KEY.id, DEFAULT_TENANT, set(Scope), None)
    ]
    _, second = await started(state, KEY, bootstrap_key=file)
    assert second == first
    # Without the file it stays, with another one both open the server.
    await started(state, KEY)
    other = ApiKey.generate()
    put(file, other)
    _, both = await started(state, other, bootstrap_key=file)
    assert {key.id for key in both} == {KEY.id, other.id}
    await started(state, KEY)
    entries = [json.loads(line) for line in (state / "audit" / "audit.jsonl").read_text().splitlines()]
    made = [entry for entry in entries if entry["action"] == "keys create"]
    assert [(entry["object"], entry["peer"]) for entry in made] == [
        (KEY.id, "bootstrap file"),
        (other.id, "bootstrap file"),
    ]
    assert KEY.secret not in (state / "audit" / "audit.jsonl").read_text()


async def test_a_bootstrap_key_that_was_revoked_stays_revoked(state: Path, file: Path) -> None:
    _, (made,) = await started(state, bootstrap_key=file)
    store = Store.open(state)
    store.keys.revoke(made.id)
    store.close()
    _, (found,) = await started(state, bootstrap_key=file)
    assert found.revoked is not None


@pytest.mark.parametrize(("reflection", "code"), [("auto", "UNIMPLEMENTED"), ("on", "OK")])
async def test_reflection_is_for_strangers_only_where_asked(
    state: Path, file: Path, reflection: Literal["auto", "on"], code: str
) -> None:
    info = engine_info(400, tokenizer_path=str(write_tokenizer(state.parent / "tokenizer")))
    settings = Settings(
        state_dir=state,
        listen="127.0.0.1:0",
        http_listen="off",
        metrics_listen="off",
        bootstrap_key=file,
        reflection=reflection,
    )
    app = App(settings, FakeBackend(info))
    try:
        await app.start()
        async with grpc.aio.insecure_channel(app.address) as channel:
            ask = channel.stream_stream("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo")(iter([]))
            assert (await ask.code()).name == code
    finally:
        await app.stop()


async def test_a_stream_of_a_key_ends_when_the_key_is_revoked(state: Path, file: Path) -> None:
    tokenizer = write_tokenizer(state.parent / "tokenizer")
    info = engine_info(400, tokenizer_path=str(tokenizer))
    # The server's own first request ends, all others go on for ever.
    backend = FakeBackend(info, lambda command: Script((5,), hang=command.tenant != SERVER_TENANT))
    app = App(
        Settings(state_dir=state, listen="127.0.0.1:0", http_listen="off", metrics_listen="off", bootstrap_key=file),
        backend,
    )
    beside = open_database(app.settings)  # as `loramux keys` opens it
    try:
        await app.start()
        other, keys = ApiKey.generate(), KeyTable(beside)
        keys.create(other, "acme", [Scope.INFER])
        async with (
            AsyncClient(app.address, api_key=KEY.text) as one,
            AsyncClient(app.address, api_key=other.text) as two,
        ):
            kept, ended = (asyncio.create_task(client.generate("hello", max_tokens=9)) for client in (one, two))
            async with asyncio.timeout(10):
                while len(backend.commands) < 3:
                    await backend.hanging.wait()
                    await asyncio.sleep(0.01)
            keys.revoke(other.id)
            async with asyncio.timeout(2.0):
                with pytest.raises(Unauthenticated, match="the key is not valid"):
                    await ended
            assert not kept.done()
            kept.cancel()
            await asyncio.wait((kept,))
    finally:
        beside.close()
        await app.stop()


async def test_another_secret_under_a_known_id_stops_the_start(state: Path, file: Path) -> None:
    await started(state, bootstrap_key=file)
    put(file, ApiKey(KEY.id, ApiKey.generate().secret))
    with pytest.raises(Error, match="another key has the id") as refused:
        await started(state, bootstrap_key=file)
    assert refused.value.code is Code.ALREADY_EXISTS


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "does not hold a key"),
        (b"hunter2", "does not hold a key"),
        (KEY.text.encode() + b"\n" + KEY.text.encode(), "does not hold a key"),
        (b"\xff" * 100, "does not hold a key"),
        (b" " * 5000 + KEY.text.encode(), "does not hold a key"),
        (b"lmx_admin_" + b"ab" * 30, "can be guessed"),
    ],
)
def test_a_file_without_a_key_is_refused_unread_aloud(state: Path, file: Path, content: bytes, told: str) -> None:
    file.write_bytes(content)
    with pytest.raises(Error, match=told) as refused:
        preflight(
            Settings(state_dir=state, listen="127.0.0.1:0", http_listen="off", metrics_listen="off", bootstrap_key=file)
        )
    assert refused.value.violations[0].field == "--bootstrap-key"
    assert not content.strip() or content.decode("latin-1").strip() not in refused.value.message


def test_a_key_that_someone_made_with_other_tools_is_taken(file: Path) -> None:
    file.write_text("\n  lmx_admin_9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08 \n")
    assert read_key(file).id == "admin"
    with pytest.raises(Error, match=r"cannot read .*No such file"):
        read_key(file.with_name("nothing"))


@pytest.mark.parametrize(
    ("flags", "flag", "told"),
    [
        ({"oidc.issuer": "https://x.example"}, "--oidc-audience", "must be given too"),
        ({"oidc.audience": "x"}, "--oidc-issuer", "must be given too"),
        ({"oidc.issuer": "http://x.example", "oidc.audience": "x"}, "--oidc-issuer", "must begin with https://"),
        ({"oidc.issuer": "accounts.example.com", "oidc.audience": "x"}, "--oidc-issuer", "must be a URL such as"),
        ({"oidc.issuer": "https://me:pw@x.example", "oidc.audience": "x"}, "--oidc-issuer", "must be a URL such as"),
        ({"oidc.issuer": "https://x.example\n", "oidc.audience": "x"}, "--oidc-issuer", "must be a URL such as"),
    ],
)
def test_settings_of_a_provider_that_do_not_fit(flags: dict[str, str], flag: str, told: str) -> None:
    with pytest.raises(Error) as refused:
        load(flags)
    assert [v.field for v in refused.value.violations] == [flag]
    assert told in refused.value.violations[0].description


@pytest.mark.parametrize(
    "issuer", ["http://localhost:8080/realms/a", "http://127.0.0.2", "http://[::1]:1/", "https://x.example/"]
)
def test_plain_http_is_for_this_machine(issuer: str) -> None:
    assert load({"oidc.issuer": issuer, "oidc.audience": "x"}).settings.oidc.issuer == issuer
