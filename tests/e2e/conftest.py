"""A real server on the real base, in float32, shared by the suite."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from loramux import Client
from tests.e2e.server_process import ServerProcess, kill
from tools.measure_adapters import shipped

StateDir = Callable[[str], Path]
HERMES = """\
{% if tools %}{{ '<|im_start|>system\nTools:\n' }}{% for tool in tools %}{{ tool | tojson }}{{ '\n' }}{% endfor %}
{{- 'Call one as <tool_call>{"name": ..., "arguments": ...}</tool_call><|im_end|>\n' }}{% endif %}
{%- for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content }}
{%- for call in m.tool_calls or [] %}{{ '<tool_call>\n' }}{{ call.function | tojson }}{{ '\n</tool_call>' }}{% endfor %}
{{- '<|im_end|>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
"""A chat template that shows tools and calls as the Hermes family does."""

BACKENDS = {"embedded": (), "ray": ("--backend", "ray", "--replicas", "2", "--threads", "1")}
"""Flags of this suite's servers by what TEST_BACKEND says; the tests of these servers run against either."""

PATIENCE = 300
"""Seconds for a test here that names no time of its own: servers start slowly beside another worker's."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Give the tests of this folder more time than others have; with TEST_BACKEND keep those that it is about."""
    if "TEST_BACKEND" in os.environ:
        others = [item for item in items if "start_server" not in getattr(item, "fixturenames", ())]
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if item not in others]
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent) and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(PATIENCE))


@pytest.fixture(scope="session")
def state_with_base(default_base: Path, tmp_path_factory: pytest.TempPathFactory) -> StateDir:
    """``state_with_base(name)``: a new state directory that has the NF4 copy of the default base already."""

    def make(name: str) -> Path:
        folder = tmp_path_factory.mktemp(name)
        (folder / "base").symlink_to(default_base.parent, target_is_directory=True)
        return folder

    return make


@pytest.fixture(scope="session")
def start_server(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., ServerProcess]:
    """``start_server(state_dir)``: a ready server process in float32; whoever starts it ends it."""
    backend = BACKENDS[os.environ.get("TEST_BACKEND", "embedded")]

    def start(state: Path, *more: str) -> ServerProcess:
        flags = ("--state-dir", str(state), "--dtype", "float32", "--device", "cpu", "--metrics-listen", "127.0.0.1:0")
        flags = (*flags, "--http-listen", "127.0.0.1:0", *backend, *more)
        server = ServerProcess(tmp_path_factory.mktemp("home"), *flags)
        try:
            server.wait_for("is ready", 180 if not backend else 400)
        except BaseException:
            kill(server)
            raise
        return server

    return start


@pytest.fixture(scope="session")
def server(state_with_base: StateDir, start_server: Callable[..., ServerProcess]) -> Iterator[ServerProcess]:
    """The suite's server, with the ready-made adapters."""
    running = start_server(state_with_base("state"))
    try:
        _upload_shipped(running)
        yield running
    finally:
        kill(running)


def _upload_shipped(server: ServerProcess) -> None:
    with Client(server.address) as client:
        for folder in shipped():
            client.adapters.upload(folder.name, folder)


@pytest.fixture(scope="session")
def server_with_tools(
    default_base: Path, tmp_path_factory: pytest.TempPathFactory, start_server: Callable[..., ServerProcess]
) -> Iterator[ServerProcess]:
    """A server on the same weights and adapters, whose chat template knows tools; the default base's own knows none."""
    base = tmp_path_factory.mktemp("base")
    for file in default_base.iterdir():
        if file.name not in ("chat_template.jinja", "loramux.json"):
            (base / file.name).symlink_to(file)
    (base / "chat_template.jinja").write_text(HERMES)
    running = start_server(tmp_path_factory.mktemp("state"), "--model", str(base))
    try:
        _upload_shipped(running)
        yield running
    finally:
        kill(running)


@pytest.fixture
def client(server: ServerProcess) -> Iterator[Client]:
    os.environ.pop("LORAMUX_ADDRESS", None)
    with Client(server.address) as connected:
        yield connected


@pytest.fixture
def kill_seed() -> random.Random:
    """Draws the moments of kills, and what happens between them."""
    number = random.randrange(1 << 32)
    print(f"seed {number}")  # shown when the test fails
    return random.Random(number)
