"""What all measurements share: the base, the folder of material, threads, and how processes are started."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from loramux import AsyncClient

from ..load import own_server
from ..serving import child


@dataclass(frozen=True, slots=True)
class Setting:
    """``base`` names the folders ``nf4`` and ``bfloat16``; ``material`` keeps what is made on the way."""

    material: Path
    name: str
    """Of the base."""
    base: dict[str, str]
    threads: int
    seeds: int
    facts: int
    quick: bool

    @property
    def nf4(self) -> Path:
        return Path(self.base["nf4"])

    @property
    def log(self) -> Path:
        return self.material / "claims.log"

    def worker(self, name: str, settings: dict[str, Any], threads: int | None = None) -> Iterator[dict[str, Any]]:
        """What a measurement in a process of its own answers, line by line. Raises RuntimeError when it fails."""
        stdin = msgspec.json.encode(settings)
        for line in child("benchmarks.claims.workers", [name], stdin, threads or self.threads, self.log):
            yield msgspec.json.decode(line)

    @asynccontextmanager
    async def server(self, *flags: str) -> AsyncIterator[AsyncClient]:
        """A client of a server of its own on the NF4 copy, with a registry that is removed afterwards."""
        with self.log.open("ab") as output:
            async with (
                own_server(("--model", self.base["nf4"], *flags), output=output) as address,
                AsyncClient(address) as client,
            ):
                yield client


def prepared(material: Path, threads: int, seeds: int, facts: int, quick: bool) -> Setting:
    """The setting with both bases, which are made once in ``material`` by a process of its own."""
    material.mkdir(parents=True, exist_ok=True)
    setting = Setting(material, "", {}, threads, seeds, facts, quick)
    asked = {"state": str(material / "state"), "folder": str(material / "base-16")}
    (made,) = setting.worker("base", asked)
    return replace(setting, name=made.pop("name"), base=made)
