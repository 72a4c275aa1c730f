"""Servers killed with -9 under traffic: usage holds what a recount of the answers says, and no answer twice.

For speed the engine only pretends; the front, its doors and its database are real.
"""

from __future__ import annotations

import multiprocessing
import random
import threading
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import loramux
from loramux import Client
from tests.e2e import kill_child
from tests.unit.services.tiny_tokenizer import write_tokenizer

FLUSH = 0.1
"""Seconds between two writes of usage."""
LATE = 2.0
"""Seconds after which an answer must be in the database: many times the flush, since the machine may be busy."""

_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["tests.e2e.kill_child"])


@dataclass
class Caller(threading.Thread):
    """Asks one after the other until the server is gone, and notes what each answer said and when it came."""

    address: str
    answers: list[tuple[float, int, int]] = field(default_factory=list)
    """When it came, and its prompt and completion tokens."""
    unanswered: int = 0

    def __post_init__(self) -> None:
        super().__init__()

    __hash__ = threading.Thread.__hash__

    def run(self) -> None:
        with Client(self.address, timeout=60) as client:
            while True:
                try:
                    usage = client.generate("hello", max_tokens=3).usage
                except (loramux.Unavailable, loramux.Cancelled):
                    self.unanswered = 1
                    return
                self.answers.append((time.monotonic(), usage.prompt_tokens, usage.completion_tokens))


def start(state: Path, tokenizer: Path) -> tuple[multiprocessing.process.BaseProcess, str]:
    ours, theirs = _PROCESSES.Pipe(duplex=False)
    process = _PROCESSES.Process(target=kill_child.main, args=(state, tokenizer, theirs, FLUSH), daemon=True)
    process.start()
    theirs.close()
    assert ours.poll(60), "the server did not start"
    return process, str(ours.recv())


def used(client: Client) -> tuple[int, int, int]:
    rows = client.usage(datetime.now(UTC).date() - timedelta(days=2))
    return tuple(sum(getattr(row, name) for row in rows) for name in ("requests", "input_tokens", "output_tokens"))  # type: ignore[return-value]


@pytest.mark.e2e
@pytest.mark.slow
def test_usage_is_exact_within_one_flush(tmp_path: Path) -> None:
    """After each life: at least what was answered well before the kill, at most what was asked, none of it twice."""
    tokenizer, state = write_tokenizer(tmp_path / "tokenizer"), tmp_path / "state"
    draw, before, settled = random.Random(7), (0, 0, 0), 0
    for _ in range(4):
        process, address = start(state, tokenizer)
        with Client(address, timeout=60) as client:
            assert used(client) == before
        callers = [Caller(address) for _ in range(3)]
        for caller in callers:
            caller.start()
        time.sleep(LATE + draw.uniform(0.2, 1.5))
        killed = time.monotonic()
        process.kill()
        process.join(30)
        for caller in callers:
            caller.join(60)
        answers = [answer for caller in callers for answer in caller.answers]
        assert answers
        (prompt,) = {answer[1] for answer in answers}
        (output,) = {answer[2] for answer in answers}
        early = [answer for answer in answers if answer[0] < killed - LATE]
        settled += len(early)
        process, address = start(state, tokenizer)
        with Client(address, timeout=60) as client:
            requests, read, written = used(client)
            more = requests - before[0]
            assert len(early) <= more <= len(answers) + sum(caller.unanswered for caller in callers)
            assert (read, written) == (requests * prompt, requests * output)
            client.generate("hello", max_tokens=3)
            before = used(client)  # which writes it
            assert before[0] == requests + 1
        process.kill()
        process.join(30)
    assert settled > 0
