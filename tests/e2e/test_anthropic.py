"""Anthropic's own client and a real server with a real base."""

from __future__ import annotations

from typing import Any

import anthropic
import pytest

from loramux import Client
from tests.e2e.server_process import ServerProcess

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

CHAT: Any = [{"role": "user", "content": "What is the capital of France? Answer in one word."}]


def test_messages_answer_as_grpc(server: ServerProcess, client: Client) -> None:
    """The same tokens through both doors, streamed and not, for the base and for a stack; cached ones told apart."""
    with anthropic.Anthropic(base_url=f"http://{server.http_address}", api_key="none") as http:
        (name, *_) = [adapter.name for adapter in client.adapters.list()]
        for model, stack in (("base", None), (f"{name}:0.5", {name: 0.5})):
            wanted = client.generate(messages=CHAT, adapters=stack, max_tokens=12)
            done = http.messages.create(model=model, messages=CHAT, max_tokens=12)
            (block,) = done.content
            assert block.type == "text"
            assert block.text == wanted.choices[0].text
            assert done.model == ("base" if stack is None else f"{name}@1:0.5")
            usage = done.usage
            assert usage.input_tokens + (usage.cache_read_input_tokens or 0) == wanted.usage.prompt_tokens
            assert usage.output_tokens == wanted.usage.completion_tokens
            assert http.messages.count_tokens(model=model, messages=CHAT).input_tokens == wanted.usage.prompt_tokens
            with http.messages.stream(model=model, messages=CHAT, max_tokens=12) as stream:
                assert "".join(stream.text_stream) == block.text
                assert stream.get_final_message().stop_reason == done.stop_reason
        with pytest.raises(anthropic.NotFoundError, match="nobody"):
            http.messages.create(model="nobody", messages=CHAT, max_tokens=1)


def test_a_turn_is_gone_on_with(server: ServerProcess, client: Client) -> None:
    turns: Any = [*CHAT, {"role": "assistant", "content": "The capital of France is"}]
    wanted = client.generate(messages=turns, continue_final_message=True, max_tokens=4)
    with anthropic.Anthropic(base_url=f"http://{server.http_address}", api_key="none") as http:
        done = http.messages.create(model="base", messages=turns, max_tokens=4)
    assert done.content[0].to_dict()["text"] == wanted.choices[0].text
