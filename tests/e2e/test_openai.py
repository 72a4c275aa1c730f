"""OpenAI's own client, sync and async, and a real server with a real base."""

from __future__ import annotations

import asyncio
from typing import Any

import agents
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


def test_embeddings_are_the_same_through_both_doors(server: ServerProcess, client: Client) -> None:
    texts = ["When does the shop open?", "At what time is the shop opened?", "def f(x): return x + 1"]
    with openai.OpenAI(base_url=f"http://{server.http_address}/v1", api_key="none") as http:
        (name, *_) = [adapter.name for adapter in client.adapters.list()]
        for model, stack, pooling in (("base", None, "mean"), (f"{name}:0.5", {name: 0.5}, "last")):
            wanted = client.embed(texts, adapters=stack, pooling=pooling)
            for encoding in ({}, {"encoding_format": "float"}):
                found = http.embeddings.create(model=model, input=texts, extra_body={"pooling": pooling}, **encoding)  # type: ignore[arg-type]
                for one, vector in zip(found.data, wanted.vectors, strict=True):
                    assert one.embedding == pytest.approx(list(vector), abs=1e-5)
            assert found.model == ("base" if stack is None else f"{name}@1:0.5")
            assert found.usage.prompt_tokens == wanted.usage.prompt_tokens
        like, unlike = (
            sum(a * b for a, b in zip(wanted.vectors[0], other, strict=True)) for other in wanted.vectors[1:]
        )
        assert like > unlike
        with pytest.raises(openai.BadRequestError, match="dimensions"):
            http.embeddings.create(model="base", input="x", dimensions=2)


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


@pytest.mark.slow
def test_responses_answer_as_grpc(server: ServerProcess, client: Client) -> None:
    with openai.OpenAI(base_url=f"http://{server.http_address}/v1", api_key="none") as http:
        wanted = client.generate(messages=CHAT, max_tokens=12)
        done = http.responses.create(model="base", input=CHAT, max_output_tokens=12)
        assert done.output_text == wanted.choices[0].text
        assert done.usage is not None
        assert done.usage.input_tokens == wanted.usage.prompt_tokens
        events = list(http.responses.create(model="base", input=CHAT, max_output_tokens=12, stream=True))
        assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == wanted.choices[0].text
        assert events[-1].type == f"response.{done.status}"


@pytest.mark.slow
async def test_an_agent_calls_a_tool(server_with_tools: ServerProcess) -> None:
    """A whole run: the model is made to call, the tool is run, and its output is answered."""
    asked: list[str] = []

    @agents.function_tool
    def weather(city: str) -> str:
        """The weather in a city."""
        asked.append(city)
        return "rain"

    async with openai.AsyncOpenAI(base_url=f"http://{server_with_tools.http_address}/v1", api_key="none") as http:
        provider = agents.OpenAIProvider(openai_client=http)
        settings = agents.ModelSettings(tool_choice="required", max_tokens=80, parallel_tool_calls=False)
        agent = agents.Agent(name="Guide", model="base", tools=[weather], model_settings=settings)
        config = agents.RunConfig(model_provider=provider, tracing_disabled=True)
        result = await agents.Runner.run(agent, "What is the weather in Oslo?", run_config=config)
        streamed = agents.Runner.run_streamed(agent, "What is the weather in Oslo?", run_config=config)
        async for _ in streamed.stream_events():
            pass
    assert len(asked) == 2
    assert [type(item).__name__ for item in result.new_items][:2] == ["ToolCallItem", "ToolCallOutputItem"]
    assert streamed.final_output == result.final_output
