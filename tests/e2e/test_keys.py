"""Keys of a real server, created and revoked beside it with the command line, as operators do."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from loramux import Client, PermissionDenied, Unauthenticated
from tests.e2e.server_process import ServerProcess, environment, kill

pytestmark = [pytest.mark.slow, pytest.mark.e2e]


def keys(state: Path, home: Path, *words: str) -> Any:
    """What a ``loramux keys`` command prints as JSON."""
    command = [sys.executable, "-m", "loramux", "keys", *words, "--state-dir", str(state), "--json"]
    done = subprocess.run(command, env=environment(home), capture_output=True, text=True, timeout=60, check=True)
    return json.loads(done.stdout)


def within_two_seconds(check: Callable[[], bool]) -> None:
    until = time.monotonic() + 2.0
    while not check():
        assert time.monotonic() < until
        time.sleep(0.05)


def refused(client: Client) -> bool:
    try:
        client.generate("The capital of France is", max_tokens=2)
    except Unauthenticated:
        return True
    return False


def test_keys_open_and_close_a_running_server(
    state_with_base: Callable[[str], Path], start_server: Callable[[Path], ServerProcess], tmp_path: Path
) -> None:
    state = state_with_base("keys")
    server = start_server(state)
    try:
        server.wait_for("Open: there are no API keys, so whoever reaches this server may do everything.")
        anybody = Client(server.address, api_key="")
        assert not refused(anybody)

        made = keys(state, tmp_path, "create", "--tenant", "acme")
        acme = Client(server.address, api_key=made["key"])
        assert not refused(acme)  # at once
        within_two_seconds(lambda: refused(anybody))
        with pytest.raises(Unauthenticated, match="this server asks for a key"):
            anybody.info()
        with pytest.raises(Unauthenticated, match="the key is not valid"):
            Client(server.address, api_key=f"{made['key'][:-1]}-").info()
        with pytest.raises(PermissionDenied, match="needs the scope 'train'"):
            list(acme.jobs.list())
        found = acme.info()
        assert (found.tenant, found.key_id, found.scopes) == ("acme", made["id"], ("adapters:read", "infer"))

        short = keys(state, tmp_path, "create", "--tenant", "acme", "--expires", "15s")
        brief = Client(server.address, api_key=short["key"])
        assert not refused(brief)
        time.sleep(max(0.0, short["expires"] - time.time()))
        assert refused(brief)

        (gone,) = keys(state, tmp_path, "revoke", made["id"])
        assert gone["state"] == "revoked"
        within_two_seconds(lambda: refused(acme))
        assert refused(anybody)  # a revoked key does not open it again

        for client in (anybody, acme, brief):
            client.close()
    finally:
        kill(server)
    assert made["key"].rpartition("_")[2] not in "\n".join(server.lines)
