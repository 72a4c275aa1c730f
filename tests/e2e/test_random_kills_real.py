"""The same random kills, of ``loramux serve`` with its engine, which also dies by itself now and then."""

from __future__ import annotations

import os
import random
import signal
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from tests.e2e import kill_child
from tests.e2e.kills import Start, kills
from tests.e2e.server_process import ServerProcess
from tests.e2e.test_engine_dies import engine_pid
from tests.tiny import write_model

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
KILLS = 12


class Real:
    """``loramux serve`` with its engine, on a tiny random model."""

    # Only what the adapters change is said here.
    info = replace(kill_child.INFO, linear_modules={f"model.layers.{i}.self_attn.q_proj": (64, 64) for i in range(3)})
    longest_life = 3.0

    def __init__(self, state: Path, model: Path) -> None:
        flags = ("--model", str(model), "--device", "cpu", "--dtype", "float32", "--kv-cache-memory", "16MiB")
        self._server = ServerProcess(state.parent, *flags, "--state-dir", str(state), "--metrics-listen", "off")
        self._server.wait_for("is ready")
        self.address = self._server.address

    def kill(self, draw: random.Random) -> str:
        if draw.random() < 0.3:  # the engine first: the front finds out, and dies on its way to another one
            os.kill(engine_pid(self._server), signal.SIGKILL)
            threading.Event().wait(draw.uniform(0, 0.5))
        self._server.process.kill()
        self._server.finish()
        return "\n".join(self._server.lines[-50:])


@pytest.fixture
def start(tmp_path: Path) -> Start:
    model = write_model(tmp_path / "model", "llama")
    return lambda state: Real(state, model)


@pytest.mark.timeout(600)
def test_kills_of_a_real_server(tmp_path: Path, start: Start, kill_seed: random.Random) -> None:
    assert kills(KILLS, tmp_path, start, kill_seed)[0] > KILLS
