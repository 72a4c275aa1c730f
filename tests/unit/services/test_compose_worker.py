"""The process that merges may end before it has begun."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import uvloop

from loramux_server.core.compose import ComposeCommand, ComposeMethod
from loramux_server.core.errors import Code, Error
from loramux_server.core.types import Stack
from loramux_server.services.adapters import compose_worker

# Larger than a pipe, so that it cannot be written to a child that does not read.
COMMAND = ComposeCommand(Stack(), ComposeMethod.CAT, "/nowhere", "/nowhere", {f"m{i}": (1, 1) for i in range(50_000)})


@pytest.mark.parametrize("module", ["no_such_module", "loramux_server.core.errors"], ids=["fails", "says nothing"])
def test_a_merge_that_dies_at_once_is_told(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    """On the loop that the server runs on, which has a word of its own for it."""
    monkeypatch.setattr(compose_worker, "MODULE", module)
    with pytest.raises(Error) as caught:
        uvloop.run(compose_worker.run_composer(COMMAND))
    assert (caught.value.code, caught.value.reason) == (Code.INTERNAL, "COMPOSE_DIED")


def test_grpc_does_nothing_around_a_fork_of_the_server() -> None:
    """Its handlers in a forked child can crash it before it becomes the engine, or a merge."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GRPC_")}
    script = "import loramux_server, os, sys; print('grpc' in sys.modules, os.environ['GRPC_ENABLE_FORK_SUPPORT'])"
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "False false\n"
