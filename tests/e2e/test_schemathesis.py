"""schemathesis over ``/openapi.json`` of a real server that asks for keys: right and wrong requests of every operation.

No answer is a failure of the server, each is as the document says, and what does not fit the document is refused. A
request that does fit may be refused all the same, since values and limits are the server's; the check for that is off.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import StateDir
from tests.e2e.server_process import ServerProcess, environment, kill
from tests.e2e.test_keys import keys

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(900)]

SCOPES = ("infer", "train", "adapters:read", "adapters:write", "admin")
SECONDS = 90
SHORT = ("--max-new-tokens", "8", "--default-max-tokens", "2")
"""What is generated is checked elsewhere; here it only takes time."""


@pytest.fixture(scope="module")
def state(state_with_base: StateDir) -> Path:
    return state_with_base("schemathesis")


@pytest.fixture(scope="module")
def key(state: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A key that may do everything, so that nothing is refused before it is read."""
    words = [word for scope in SCOPES for word in ("--scope", scope)]
    return str(keys(state, tmp_path_factory.mktemp("keys"), "create", "--tenant", "acme", *words)["key"])


@pytest.fixture(scope="module")
def server_with_keys(state: Path, key: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    flags = ("--state-dir", str(state), "--device", "cpu", "--metrics-listen", "off", "--http-listen", "127.0.0.1:0")
    running = ServerProcess(tmp_path_factory.mktemp("home"), *flags, *SHORT)
    try:
        running.wait_for("is ready")
        yield running
    finally:
        kill(running)


def test_every_operation_keeps_to_the_document(server_with_keys: ServerProcess, key: str, tmp_path: Path) -> None:
    command = [str(Path(sys.executable).with_name("schemathesis")), "run"]
    command += [f"http://{server_with_keys.http_address}/openapi.json", "-H", f"Authorization: Bearer {key}"]
    command += ["--exclude-path-regex", "^/loramux"]  # protobuf's JSON takes more than a schema can say; see tests/fuzz
    command += ["--checks", "all", "--exclude-checks", "positive_data_acceptance", "--continue-on-failure"]
    command += ["--seed", "1", "--max-time", str(SECONDS), "--generation-database", "none", "--no-color"]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout[-20_000:]
    made = re.search(r"(\d+) generated, (\d+) passed", done.stdout)
    assert made is not None, done.stdout[-2000:]
    assert int(made[2]) > 500
    assert server_with_keys.process.poll() is None
    assert not [line for line in server_with_keys.lines if "call failed" in line]
