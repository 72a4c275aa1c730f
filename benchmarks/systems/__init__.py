"""Who is measured. Each system is opened in a process of its own by ``benchmarks.worker``."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from ..job import Job
from ..samples import Sample
from ..workloads import Ask, Cell

OURS = ("loramux", "engine", "inline")
PEERS = ("peft", "transformers")
FROM_ELSEWHERE = ("llama-server", "vllm")
SYSTEMS = (*OURS, *PEERS, *FROM_ELSEWHERE)
TITLES = {
    "loramux": "loramux over gRPC",
    "engine": "loramux engine process",
    "inline": "loramux engine inline",
    "peft": "PEFT generate",
    "transformers": "transformers generate",
    "llama-server": "llama.cpp llama-server",
    "vllm": "vLLM",
}


class System(Protocol):
    """One system, ready to be asked."""

    facts: dict[str, str]
    """What to know to judge its figures; complete once it has run."""

    def refuses(self, cell: Cell) -> str:
        """Why it cannot run a workload; empty if it can."""
        ...

    def pids(self) -> list[int]:
        """The processes whose memory is the system's."""
        ...

    async def run(self, asks: Sequence[Ask], concurrency: int) -> tuple[list[Sample], float]:
        """Answer all, ``concurrency`` at any time: samples in the order of ``asks``, and the seconds it took."""
        ...


def open_system(job: Job) -> AbstractAsyncContextManager[System]:
    """The system of a job. Imports only what that one needs."""
    if job.system == "loramux":
        from .remote import open_server

        return open_server(job)
    if job.system in OURS:
        from .engine import open_engine

        return open_engine(job)
    if job.system in PEERS:
        from .generate import open_generate

        return open_generate(job)
    if job.system == "llama-server":
        from .llama import open_llama

        return open_llama(job)
    if job.system == "vllm":
        from .vllm import open_vllm

        return open_vllm(job)
    raise ValueError(f"unknown system {job.system!r}; one of {', '.join(SYSTEMS)}")
