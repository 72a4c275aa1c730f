"""Servers that are killed under traffic, the writers who make it, and what the registry must hold afterwards.

Each writer has an adapter name of its own, so what it was told is a history that the registry must agree with, up to
the one call that was under way.
"""

from __future__ import annotations

import random
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import loramux
from loramux import Client
from loramux_server.app.maintenance import check
from loramux_server.core.backend import EngineInfo
from tests.unit.services.adapter_files import write_adapter

WRITERS = 3
KINDS = {"upload": 40, "promote": 15, "delete": 12, "delete all": 4, "pin": 9, "compose": 10, "generate": 10}
"""What a writer does, and how often of a hundred times."""


class Server(Protocol):
    """A server that is ready, to be killed."""

    info: EngineInfo
    """What adapters must fit."""
    longest_life: float
    """Seconds."""

    @property
    def address(self) -> str: ...

    def kill(self, draw: random.Random) -> str:
        """End it; gives the last lines that it said."""


Start = Callable[[Path], Server]


@dataclass(frozen=True)
class History:
    """What the registry must hold under a name: number -> digest, the current number, those that are pinned."""

    versions: dict[int, str] = field(default_factory=dict)
    current: int | None = None
    pinned: frozenset[int] = frozenset()

    def published(self, number: int, digest: str) -> History:
        return replace(self, versions={**self.versions, number: digest}, current=number)

    def without(self, number: int) -> History:
        kept = {n: d for n, d in self.versions.items() if n != number}
        return replace(self, versions=kept, pinned=self.pinned - {number})


class Writer(threading.Thread):
    """Publishes, merges, promotes, pins and deletes under one name, and asks it, until the server is gone."""

    def __init__(self, server: Server, name: str, history: History, root: Path, draw: random.Random) -> None:
        super().__init__()
        self.client = Client(server.address, timeout=60)
        self.info = server.info
        self.adapter, self.history, self.root, self.draw = name, history, root, draw
        self.doing: str = ""
        self.maybe: list[History] = []  # what the call under way may have made of it
        self.done: set[str] = set()
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
        h = self.history
        self.doing = "upload"
        if h.versions:
            (self.doing,) = self.draw.choices([*KINDS], [*KINDS.values()])
        self.maybe = []
        after = self.act(h)
        self.done.add(self.doing)
        self.history, self.doing, self.maybe = after, "", []
        self.acknowledged += 1

    def act(self, h: History) -> History:
        adapters = self.client.adapters
        number = self.draw.choice([*h.versions, 0])
        if self.doing == "upload":
            folder = self.root / f"{self.adapter}-{self.draw.getrandbits(48):x}"
            write_adapter(folder, self.info, b=self.draw.uniform(0.1, 1.0))
            made = adapters.upload(self.adapter, folder)
            shutil.rmtree(folder)
            return h.published(made.version, made.digest)
        if self.doing == "compose":
            # Weights that nobody drew before, so that the outcome is new.
            made = adapters.compose(self.adapter, {self.adapter: self.draw.uniform(0.1, 2.0)})
            return h.published(made.version, made.digest)
        if self.doing == "generate" or (self.doing != "delete all" and (not number or number == h.current)):
            self.doing = "generate"
            self.client.generate("hello", adapters=[self.adapter], max_tokens=3)
            return h
        after = {
            "promote": replace(h, current=number),
            "delete": h.without(number),
            "delete all": History(),
            "pin": replace(h, pinned=h.pinned ^ {number}),
        }[self.doing]
        self.maybe = [after]
        ref = f"{self.adapter}@{number}"
        if self.doing == "promote":
            adapters.set_alias(self.adapter, number)
        elif self.doing == "pin":
            (adapters.pin if number in after.pinned else adapters.unpin)(ref)
        else:
            adapters.delete(self.adapter if self.doing == "delete all" else ref)
        return after

    def settle(self, found: History) -> History:
        """What the registry holds must be the history, or the history after the call that got no answer."""
        allowed = [self.history, *self.maybe]
        new = {n: d for n, d in found.versions.items() if n not in self.history.versions}
        if self.doing in ("upload", "compose") and len(new) == 1:
            allowed.append(self.history.published(*new.popitem()))
        assert found in allowed, f"{self.adapter}: {found} after {self.doing or 'nothing'}; was {self.history}"
        return found


def held(client: Client, name: str) -> History:
    try:
        adapter = client.adapters.get(name)
    except loramux.NotFound:
        return History()
    return History(
        {v.version: v.digest for v in adapter.versions},
        adapter.current.version if adapter.current else None,
        frozenset(v.version for v in adapter.versions if v.pinned),
    )


def kills(times: int, tmp_path: Path, start: Start, draw: random.Random) -> tuple[int, set[str]]:
    """Kill a server so often; gives how many calls were acknowledged in all, and of which kinds."""
    state, root = tmp_path / "state", tmp_path / "folders"
    root.mkdir()
    histories = {f"adapter-{i}": History() for i in range(WRITERS)}
    writers: list[Writer] = []
    acknowledged, done = 0, set[str]()
    for life in range(times + 1):
        server = start(state)
        with Client(server.address, timeout=60) as client:
            for writer in writers:
                histories[writer.adapter] = writer.settle(held(client, writer.adapter))
            for name, history in histories.items():
                for number in history.versions:
                    client.adapters.download(f"{name}@{number}", tmp_path / "down")  # its files are there and whole
                    client.generate("hello", adapters=[f"{name}@{number}"], max_tokens=1)  # and it loads
        writers = [
            Writer(server, name, history, root, random.Random(draw.random())) for name, history in histories.items()
        ]
        for writer in writers:
            writer.start()
        threading.Event().wait(draw.uniform(0.02, server.longest_life))
        said = server.kill(draw)
        for writer in writers:
            writer.join(60)
            assert not writer.is_alive()
            assert writer.defect is None, f"life {life}: {writer.doing}: {writer.defect!r}\n{said}"
            acknowledged += writer.acknowledged
            done |= writer.done
        # Files on their way to a row may be left; the server's collector takes them. Nothing else may be amiss.
        found, running = check(state)
        assert not running
        assert [f for f in found if f.check != "orphan"] == []
    return acknowledged, done
