"""Runs one target for a number of inputs or seconds, and says how it went.

With atheris installed inputs are guided by coverage; otherwise they are seeds with bytes changed at random.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import msgspec

from .target import Target, found_before, resident_bytes

HANG = 10
"""Seconds that one input may take."""
WARM = 500
"""Inputs before memory is first measured: caches are filled by then."""
MAX_LEN = 8192


@dataclass
class Record:
    """How a run went. Memory in bytes."""

    target: str
    inputs: int
    seconds: float
    seed: int
    guided: bool
    rss_before: int
    rss_after: int
    slowest: float
    """Seconds of the slowest input."""
    finding: str = ""
    input: str = ""
    """The input of the finding in hexadecimal."""


class Hang(BaseException):
    """One input took too long. No ``except Exception`` may swallow it."""


class Campaign:
    """Counts, measures, and stops at the limit or at the first finding."""

    def __init__(self, target: Target, inputs: int, seconds: float, seed: int, *, guided: bool) -> None:
        self._target, self._limit, self._until = target, inputs, time.monotonic() + seconds
        self._began = time.monotonic()
        self.record = Record(target.name, 0, 0.0, seed, guided, 0, 0, 0.0)
        signal.signal(signal.SIGALRM, _hang)

    def take(self, data: bytes) -> bool:
        """Run one input; False when it was the last one."""
        record, began = self.record, time.monotonic()
        signal.alarm(HANG)
        try:
            self._target(data)
        except (Exception, Hang):
            record.finding, record.input = traceback.format_exc()[-3000:], data.hex()
        finally:
            signal.alarm(0)
        now = time.monotonic()
        record.inputs += 1
        record.slowest = max(record.slowest, now - began)
        if record.inputs == WARM:
            record.rss_before = resident_bytes(self._target.pid)
        return not record.finding and record.inputs < self._limit and now < self._until

    def end(self) -> Record:
        self.record.seconds = round(time.monotonic() - self._began, 1)
        self.record.rss_after = resident_bytes(self._target.pid) if not self.record.finding else 0
        return self.record


def _hang(number: int, frame: FrameType | None) -> None:
    raise Hang


def run(make: Callable[[], Target], inputs: int, seconds: float, seed: int, done: Callable[[Record], object]) -> None:
    """Fuzz; ``done`` gets the record. Does not return where atheris drives: that ends the process."""
    try:
        import atheris
    except ImportError:
        target = make()
        campaign = Campaign(target, inputs, seconds, seed, guided=False)
        _mutate(target, campaign, seed)
        done(campaign.end())
        return
    target = make()
    campaign = Campaign(target, inputs, seconds, seed, guided=True)

    def one(data: bytes) -> None:
        if not campaign.take(data):
            done(campaign.end())
            sys.stdout.flush()
            os._exit(0)

    for module in [m for name, m in sys.modules.items() if name.startswith(target.modules or ("none",))]:
        _instrument(atheris, module)
    with tempfile.TemporaryDirectory() as folder:
        for number, seed_input in enumerate((*target.seeds, *found_before(target.name))):
            (Path(folder) / str(number)).write_bytes(seed_input)
        options = (f"-seed={seed}", f"-max_len={MAX_LEN}", "-rss_limit_mb=0", "-timeout=0", "-verbosity=0")
        atheris.Setup([sys.argv[0], *options, folder], one)
        atheris.Fuzz()


def _instrument(atheris: Any, module: Any) -> None:
    for name, value in list(vars(module).items()):
        if getattr(value, "__module__", None) == module.__name__ and hasattr(value, "__code__"):
            setattr(module, name, atheris.instrument_func(value))


def _mutate(target: Target, campaign: Campaign, seed: int) -> None:
    """Seeds as they are, then seeds with pieces changed, repeated, cut and exchanged."""
    draw = random.Random(seed)
    seeds = [*target.seeds, *found_before(target.name)]
    for data in seeds:
        if not campaign.take(data):
            return
    while campaign.take(mutated(draw, seeds)):
        pass


def mutated(draw: random.Random, seeds: list[bytes]) -> bytes:
    """One of ``seeds`` with a few changes."""
    data = bytearray(draw.choice(seeds))
    for _ in range(draw.choice((1, 1, 2, 4, 16))):
        at = draw.randrange(len(data) + 1)
        match draw.randrange(7):
            case 0 if data:
                data[at % len(data)] ^= 1 << draw.randrange(8)
            case 1 if data:
                data[at % len(data)] = draw.choice((0, 0xFF, 0x7F, 0x80, draw.randrange(256)))
            case 2:
                data[at:at] = draw.randbytes(draw.choice((1, 2, 4, 8)))
            case 3:
                del data[at : at + draw.choice((1, 2, 8, 64))]
            case 4:
                data[at:at] = data[at : at + draw.randrange(1, 64)] * draw.choice((1, 2, 50))
            case 5:
                other = draw.choice(seeds)
                begin = draw.randrange(len(other) + 1)
                data[at:at] = other[begin : begin + draw.randrange(1, 64)]
            case _:
                number = draw.choice((0, 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1))
                data[at : at + 8] = number.to_bytes(8, draw.choice(("little", "big")))
    return bytes(data[:MAX_LEN])


def encode(record: Record) -> bytes:
    return msgspec.json.encode(asdict(record))
