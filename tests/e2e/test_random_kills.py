"""kill -9 at random moments under traffic, again and again: nothing acknowledged is lost, nothing is half there.

Each writer has an adapter name of its own, so what it was told is a history that the registry must agree with, up to
the one call that was under way. ``LORAMUX_TEST_KILLS`` says how often (200).
"""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import threading
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

import loramux
from loramux import Client
from loramux_server.app.maintenance import check
from tests.e2e import kill_child
from tests.unit.services.adapter_files import write_adapter
from tests.unit.services.fakes import engine_info
from tests.unit.services.tiny_tokenizer import write_tokenizer

KILLS = int(os.environ.get("LORAMUX_TEST_KILLS", "200"))
WRITERS = 3
LONGEST_LIFE = 0.8

_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["tests.e2e.kill_child"])


@dataclass(frozen=True)
class History:
    """What the registry must hold under a name: number -> digest, and the current number."""

    versions: dict[int, str] = field(default_factory=dict)
    current: int | None = None


class Writer(threading.Thread):
    """Publishes, promotes and deletes under one name until the server is gone."""

    def __init__(self, address: str, name: str, history: History, root: Path, draw: random.Random) -> None:
        super().__init__()
        self.client = Client(address, timeout=30)
        self.adapter, self.history, self.root, self.draw = name, history, root, draw
        self.doing: str = ""
        self.maybe: list[History] = []  # what the call under way may have made of it
        self.acknowledged = 0
        self.defect: BaseException | None = None

    def run(self) -> None:
        try:
            while True:
                self.step()
        except (loramux.Unavailable, loramux.Cancelled):
            pass  # the server died
        except BaseException as error:  # told to the test, which fails with it
            self.defect = error
        finally:
            self.client.close()

    def step(self) -> None:
        h, adapters = self.history, self.client.adapters
        others = [n for n in h.versions if n != h.current]
        choice = self.draw.random()
        if choice < 0.5 or not h.versions:
            folder = self.root / f"{self.adapter}-{self.draw.getrandbits(48):x}"
            write_adapter(folder, engine_info(kill_child.VOCABULARY), b=self.draw.uniform(0.1, 1.0))
            self.doing = "upload"
            made = adapters.upload(self.adapter, folder)
            shutil.rmtree(folder)
            after = History({**h.versions, made.version: made.digest}, made.version)
        elif choice < 0.7:
            number = self.draw.choice(list(h.versions))
            after = replace(h, current=number)
            self.doing, self.maybe = "promote", [after]
            adapters.set_alias(self.adapter, number)
        elif choice < 0.85 and others:
            number = self.draw.choice(others)
            after = replace(h, versions={n: d for n, d in h.versions.items() if n != number})
            self.doing, self.maybe = "delete", [after]
            adapters.delete(f"{self.adapter}@{number}")
        elif choice < 0.9:
            after = History()
            self.doing, self.maybe = "delete all", [after]
            adapters.delete(self.adapter)
        else:
            after = h
            self.doing = "generate"
            self.client.generate("hello", adapters=[self.adapter], max_tokens=3)
        self.history, self.doing, self.maybe = after, "", []
        self.acknowledged += 1

    def settle(self, found: History) -> History:
        """What the registry holds must be the history, or the history after the call that got no answer."""
        allowed = [self.history, *self.maybe]
        if self.doing == "upload":
            new = {n: d for n, d in found.versions.items() if n not in self.history.versions}
            if len(new) == 1:
                (number,) = new
                allowed.append(History({**self.history.versions, **new}, number))
        assert found in allowed, f"{self.adapter}: {found} after {self.doing or 'nothing'}; was {self.history}"
        return found


def held(client: Client, name: str) -> History:
    try:
        adapter = client.adapters.get(name)
    except loramux.NotFound:
        return History()
    return History(
        {v.version: v.digest for v in adapter.versions}, adapter.current.version if adapter.current else None
    )


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    return write_tokenizer(tmp_path / "tokenizer")


@pytest.fixture
def seed() -> random.Random:
    number = random.randrange(1 << 32)
    print(f"seed {number}")  # shown when the test fails
    return random.Random(number)


def kills(times: int, tmp_path: Path, tokenizer: Path, draw: random.Random) -> int:
    """Kill a server so often; gives how many calls were acknowledged in all."""
    state, root = tmp_path / "state", tmp_path / "folders"
    root.mkdir()
    histories = {f"adapter-{i}": History() for i in range(WRITERS)}
    writers: list[Writer] = []
    acknowledged = 0
    for life in range(times + 1):
        ours, theirs = _PROCESSES.Pipe(duplex=False)
        server = _PROCESSES.Process(target=kill_child.main, args=(state, tokenizer, theirs), daemon=True)
        server.start()
        theirs.close()
        assert ours.poll(60), "the server did not start"
        address = ours.recv()
        with Client(address) as client:
            for writer in writers:
                histories[writer.adapter] = writer.settle(held(client, writer.adapter))
            for name, history in histories.items():
                for number in history.versions:  # each loads: its files are there and whole
                    client.adapters.download(f"{name}@{number}", tmp_path / "down")
        writers = [
            Writer(address, name, history, root, random.Random(draw.random())) for name, history in histories.items()
        ]
        for writer in writers:
            writer.start()
        threading.Event().wait(draw.uniform(0.02, LONGEST_LIFE))
        assert server.pid is not None
        os.kill(server.pid, signal.SIGKILL)
        server.join(30)
        for writer in writers:
            writer.join(60)
            assert not writer.is_alive()
            assert writer.defect is None, f"life {life}: {writer.doing}: {writer.defect!r}"
            acknowledged += writer.acknowledged
        # Files on their way to a row may be left; the server's collector takes them. Nothing else may be amiss.
        found, running = check(state)
        assert not running
        assert [f for f in found if f.check != "orphan"] == []
    return acknowledged


@pytest.mark.e2e
def test_a_few_kills(tmp_path: Path, tokenizer: Path, seed: random.Random) -> None:
    assert kills(4, tmp_path, tokenizer, seed) > 0


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_many_kills(tmp_path: Path, tokenizer: Path, seed: random.Random) -> None:
    assert kills(KILLS, tmp_path, tokenizer, seed) > KILLS
