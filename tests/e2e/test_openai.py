"""OpenAI's own client, sync and async, and a real server with a real base."""

from __future__ import annotations

import asyncio
from typing import Any

import openai
import pytest

from loramux import Client
from tests.e2e.server_process import ServerProcess

pytestmark = pytest.mark.e2e

CHAT: Any = [{"role": "user", "content": "What is the capital of France? Answer in one word."}]


def test_http_answers_as_grpc(server: ServerProcess, client: Client) -> None:
    """The same tokens through both doors, streamed and not, for the base and for a stack."""
    with openai.OpenAI(base_url=f"http://{server.http_address}/v1", api_key="none") as http:
        (name, *_) = [adapter.name for adapter in client.adapters.list()]
        for model, stack in (("base", None), (f"{name}:0.5", {name: 0.5})):
            wanted = client.generate(messages=CHAT, adapters=stack, max_tokens=12)
            done = http.chat.completions.create(model=model, messages=CHAT, max_tokens=12)
            assert done.choices[0].message.content == wanted.choices[0].text
            assert done.usage is not None
            assert done.usage.prompt_tokens == wanted.usage.prompt_tokens
            assert done.model == ("base" if stack is None else f"{name}@1:0.5")
            stream = http.chat.completions.create(model=model, messages=CHAT, max_tokens=12, stream=True)
            text = "".join(choice.delta.content or "" for chunk in stream for choice in chunk.choices)
            assert text == wanted.choices[0].text
        plain = http.completions.create(model="base", prompt="The capital of France is", max_tokens=5, logprobs=2)
        assert plain.choices[0].text == client.generate("The capital of France is", max_tokens=5).choices[0].text
        assert plain.choices[0].logprobs is not None
        assert "".join(plain.choices[0].logprobs.tokens or ()) == plain.choices[0].text
        with pytest.raises(openai.NotFoundError, match="nobody"):
            http.chat.completions.create(model="nobody", messages=CHAT)


async def test_a_client_that_leaves_frees_the_batch(server: ServerProcess) -> None:
    async with openai.AsyncOpenAI(base_url=f"http://{server.http_address}/v1", api_key="none") as http:
        stream = await http.completions.create(
            model="base", prompt="x", max_tokens=2000, stream=True, n=4, extra_body={"ignore_eos": True}
        )
        async for _ in stream:
            break
        await stream.close()
    async with asyncio.timeout(20):
        while "loramux_requests_running 0.0" not in await asyncio.to_thread(server.metrics):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
