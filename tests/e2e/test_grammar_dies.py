"""The processes that hold grammars are killed in the middle of an answer: it fails, and nobody else notices."""

from __future__ import annotations

import os
import re
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import loramux
from loramux import Client
from loramux_server.engine.grammar.host import MODULE
from tests.e2e.server_process import ServerProcess

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def grammar_processes(pid: int) -> list[int]:
    """The descendants of a process that hold grammars, parents first."""
    children = [int(c) for task in Path(f"/proc/{pid}/task").iterdir() for c in (task / "children").read_text().split()]
    mine = [c for c in children if MODULE.encode() in Path(f"/proc/{c}/cmdline").read_bytes()]
    return [*mine, *(found for child in children for found in grammar_processes(child))]


def counted(server: ServerProcess, name: str) -> float:
    """A counter on the metrics page."""
    found = re.search(rf"^{re.escape(name)} (\S+)$", server.metrics(), re.MULTILINE)
    assert found, name
    return float(found[1])


def test_killed_grammars_fail_their_own_answers(server: ServerProcess, client: Client) -> None:
    lost = counted(server, 'loramux_grammars_total{result="lost"}')
    restarts = counted(server, "loramux_grammar_restarts_total")
    alone = client.generate("Once upon a time", max_tokens=24, temperature=0.0, ignore_eos=True).text
    begun = threading.Event()

    def plain() -> str:
        with Client(server.address) as other:
            chunks = []
            for chunk in other.stream("Once upon a time", max_tokens=24, temperature=0.0, ignore_eos=True):
                chunks.append(chunk.text)
                begun.set()
            return "".join(chunks)

    with (
        ThreadPoolExecutor(1) as pool,
        client.stream("Go on:", max_tokens=500, response_format={"regex": "[a-z ]{1500}"}) as shaped,
    ):
        next(iter(shaped))
        mate = pool.submit(plain)
        assert begun.wait(60)
        for pid in reversed(grammar_processes(server.process.pid)):
            os.kill(pid, signal.SIGKILL)
        with pytest.raises(loramux.LoramuxError) as failed:
            for _ in shaped:
                pass
        assert "response_format" in str(failed.value)
        assert mate.result(60) == alone
    answer = client.generate("Yes or no?", max_tokens=8, response_format={"choice": ["yes", "no"]})
    assert answer.text in ("yes", "no")
    assert counted(server, 'loramux_grammars_total{result="lost"}') > lost
    assert counted(server, "loramux_grammar_restarts_total") > restarts
