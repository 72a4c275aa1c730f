"""What is asked of peers behind HTTP, and how their streams are read: over a server that plays a script."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from benchmarks.systems.http import Events
from benchmarks.systems.llama import LlamaSystem, interleave
from benchmarks.systems.vllm import VllmSystem
from benchmarks.workloads import Ask, Cell


class Peer:
    """Answers each POST with ``events``, or with a status and a text; keeps what was asked."""

    def __init__(self, events: list[dict[str, Any]], status: int = 200) -> None:
        self.events, self.status = events, status
        self.asked: list[tuple[str, dict[str, Any]]] = []

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = next((int(x.split(":")[1]) for x in head.split("\r\n") if x.lower().startswith("content-length")), 0)
        body = json.loads(await reader.readexactly(length)) if length else {}
        self.asked.append((head.split()[1], body))
        writer.write(f"HTTP/1.1 {self.status} X\r\nConnection: close\r\n\r\n".encode())
        for event in self.events:
            writer.write(f"data: {json.dumps(event)}\n\n".encode())
        writer.write(b"data: [DONE]\n\n")
        await writer.drain()
        writer.close()


@asynccontextmanager
async def serving(peer: Peer) -> AsyncIterator[Events]:
    server = await asyncio.start_server(peer.answer, "127.0.0.1", 0)
    events = Events(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    try:
        yield events
    finally:
        await events.close()
        server.close()


@pytest.fixture
def tokenizer() -> Tokenizer:
    made = Tokenizer(models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return made


async def test_llama_is_told_every_scale_and_read_token_by_token(tokenizer: Tokenizer) -> None:
    peer = Peer([{"tokens": [7]}, {"tokens": [8, 9]}, {"tokens": [], "stop": True}])
    async with serving(peer) as events:
        system = LlamaSystem(events, tokenizer, 3, None)
        samples, _ = await system.run([Ask("a b a", ((2, 0.5), (0, 1.0)), 3)], 1)
    assert (samples[0].tokens, samples[0].prompt_tokens) == ((7, 8, 9), 3)
    ((path, body),) = peer.asked
    assert path == "/completion"
    assert body["prompt"] == [0, 1, 0]
    assert body["lora"] == [{"id": 0, "scale": 1.0}, {"id": 1, "scale": 0.0}, {"id": 2, "scale": 0.5}]
    assert (body["n_predict"], body["temperature"], body["ignore_eos"], body["cache_prompt"]) == (3, 0.0, True, False)


async def test_vllm_is_asked_for_one_adapter_by_name_and_refuses_stacks(tokenizer: Tokenizer) -> None:
    peer = Peer([{"choices": [{"token_ids": [4]}]}, {"choices": [{"token_ids": [5]}]}, {"choices": []}])
    async with serving(peer) as events:
        system = VllmSystem(events, tokenizer, ["x", "y"], None)
        samples, _ = await system.run([Ask("a", ((1, 1.0),), 2), Ask("b", (), 2)], 1)
    assert [s.tokens for s in samples] == [(4, 5), (4, 5)]
    assert [body["model"] for _, body in peer.asked] == ["y", "base"]
    assert system.refuses(Cell("stacks", 1, 1, 2))
    assert not system.refuses(Cell("adapters", 1, 1, 2))


async def test_a_refusal_is_told_with_its_text(tokenizer: Tokenizer) -> None:
    async with serving(Peer([{"reason": "no such adapter"}], status=400)) as events:
        assert not await events.answers("/health")
        with pytest.raises(RuntimeError, match=r"400.*no such adapter"):
            await LlamaSystem(events, tokenizer, 0, None).run([Ask("a", (), 1)], 1)


async def test_an_error_within_a_stream_is_one(tokenizer: Tokenizer) -> None:
    async with serving(Peer([{"tokens": [1]}, {"error": {"message": "out of slots"}}])) as events:
        with pytest.raises(RuntimeError, match="out of slots"):
            await LlamaSystem(events, tokenizer, 0, None).run([Ask("a", (), 1)], 1)


def test_rotary_rows_go_from_halves_to_pairs_within_each_head() -> None:
    rows = np.arange(8)[:, None]  # two heads of four: halves (0 1 | 2 3) become pairs (0 2)(1 3)
    assert interleave(rows, heads=2).flatten().tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
