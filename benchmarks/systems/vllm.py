"""vLLM behind its OpenAI door: ``--vllm PATH`` starts one, ``--vllm URL`` asks one that runs.

Its CPU build reads no NF4, so it gets a copy of the base with the same values in 16 bits. It takes one adapter per
request and no stacks. One that runs already must serve a model called ``base`` and the adapters by the names of their
folders.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from tokenizers import Tokenizer

from ..job import Job
from ..processes import tree
from ..samples import Sample, Stopwatch
from ..workloads import ADAPTERS, RANK, Ask, Cell, closed_loop
from .children import ended, free_port, start, wait_until
from .http import Events

BASE = "base"
CACHE_GIB = 2


class VllmSystem:
    """A server and a client of it."""

    def __init__(self, events: Events, tokenizer: Tokenizer, names: Sequence[str], pid: int | None) -> None:
        self.facts = {"weights": "NF4's values in 16 bits"}
        self._events, self._tokenizer, self._names, self._pid = events, tokenizer, names, pid

    def refuses(self, cell: Cell) -> str:
        return "no stacks of adapters" if cell.depth > 1 else ""

    def pids(self) -> list[int]:
        return [] if self._pid is None else tree(self._pid)

    async def run(self, asks: Sequence[Ask], concurrency: int) -> tuple[list[Sample], float]:
        return await closed_loop(asks, concurrency, self._one)

    async def _one(self, ask: Ask) -> Sample:
        watch = Stopwatch()
        ids = self._tokenizer.encode(ask.prompt).ids
        body = {
            "model": self._names[ask.stack[0][0]] if ask.stack else BASE,
            "prompt": ids,
            "max_tokens": ask.tokens,
            "temperature": 0.0,
            "ignore_eos": True,
            "stream": True,
            "return_token_ids": True,
        }
        async for event in self._events.stream("/v1/completions", body):
            for choice in event["choices"]:
                watch.tokens(choice.get("token_ids") or ())
        return watch.sample(len(ids))


@asynccontextmanager
async def open_vllm(job: Job) -> AsyncIterator[VllmSystem]:
    """Write the 16-bit copy and start the server, or find the one at the URL."""
    tokenizer = Tokenizer.from_file(str(Path(job.base.folder) / "tokenizer.json"))
    names = [Path(folder).name for folder in job.base.adapters]
    async with AsyncExitStack() as stack:
        server, pid, url = None, None, job.target
        if not job.target.startswith(("http://", "https://")):
            port = free_port()
            url = f"http://127.0.0.1:{port}"
            server = start(_command(job, names, port), _environment(job))
            stack.callback(ended, server)
            pid = server.pid
        events = Events(url)
        stack.push_async_callback(events.close)
        await wait_until(lambda: events.answers("/health"), server)
        yield VllmSystem(events, tokenizer, names, pid)


def _command(job: Job, names: Sequence[str], port: int) -> list[str]:
    folder = Path(job.scratch) / "unpacked"
    write_unpacked(Path(job.base.folder), folder, job.dtype)
    command = [job.target, "serve", str(folder), "--served-model-name", BASE, "--dtype", job.dtype]
    command += ["--host", "127.0.0.1", "--port", str(port), "--max-model-len", "1024", "--max-num-seqs", "64"]
    command += ["--no-enable-prefix-caching", "--enable-lora", "--max-loras", str(ADAPTERS)]
    command += ["--max-lora-rank", str(RANK), "--lora-modules"]
    return command + [f"{name}={path}" for name, path in zip(names, job.base.adapters, strict=True)]


def _environment(job: Job) -> dict[str, str]:
    cores = "0" if job.threads == 1 else f"0-{job.threads - 1}"
    return {"VLLM_CPU_KVCACHE_SPACE": str(CACHE_GIB), "VLLM_CPU_OMP_THREADS_BIND": cores, "VLLM_NO_USAGE_STATS": "1"}


def write_unpacked(base: Path, folder: Path, dtype: str) -> None:
    """Write an NF4 folder's values as an ordinary model in ``dtype``."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(base, dtype=getattr(torch, dtype), local_files_only=True)
    model.dequantize().to(getattr(torch, dtype)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(base, local_files_only=True).save_pretrained(folder)
