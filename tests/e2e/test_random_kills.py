"""kill -9 at random moments under traffic, again and again: nothing acknowledged is lost, nothing is half there.

For speed the engine only pretends. ``TEST_KILLS`` says how often (100).
"""

from __future__ import annotations

import multiprocessing
import os
import random
from pathlib import Path

import pytest

from tests.e2e import kill_child
from tests.e2e.kills import KINDS, Start, kills
from tests.unit.services.tiny_tokenizer import write_tokenizer

KILLS = int(os.environ.get("TEST_KILLS", "100"))

_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["tests.e2e.kill_child"])


class Pretending:
    """A front with all that it has, and no engine."""

    info = kill_child.INFO
    longest_life = 0.5

    def __init__(self, state: Path, tokenizer: Path) -> None:
        ours, theirs = _PROCESSES.Pipe(duplex=False)
        self._process = _PROCESSES.Process(target=kill_child.main, args=(state, tokenizer, theirs), daemon=True)
        self._process.start()
        theirs.close()
        assert ours.poll(60), "the server did not start"
        self.address: str = ours.recv()

    def kill(self, draw: random.Random) -> str:
        self._process.kill()
        self._process.join(30)
        return ""


@pytest.fixture
def start(tmp_path: Path) -> Start:
    tokenizer = write_tokenizer(tmp_path / "tokenizer")
    return lambda state: Pretending(state, tokenizer)


@pytest.mark.e2e
@pytest.mark.slow
def test_a_few_kills(tmp_path: Path, start: Start, kill_seed: random.Random) -> None:
    assert kills(4, tmp_path, start, kill_seed)[0] > 0


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_many_kills(tmp_path: Path, start: Start, kill_seed: random.Random) -> None:
    acknowledged, done = kills(KILLS, tmp_path, start, kill_seed)
    assert acknowledged > KILLS
    assert KILLS < 50 or done == set(KINDS)
