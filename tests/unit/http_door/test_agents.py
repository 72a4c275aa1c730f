"""OpenAI's Agents SDK over the HTTP door: an agent that calls a tool and answers with what it gave."""

from __future__ import annotations

from collections.abc import Iterator

import agents
import pytest
from agents import Agent, ModelSettings, RunConfig, Runner, function_tool
from agents.models.openai_provider import OpenAIProvider

from loramux_server.core.types import FinishReason
from loramux_server.services.common.context import Context
from loramux_server.text.chat.chat_template import ChatTemplate

from .conftest import Http

TEMPLATE = (
    "{% for t in tools or [] %}{{ t.function.name }};{% endfor %}"
    "{% for m in messages %}{{ m.role[:4] }}: {{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function.arguments | tojson }}</tool_call>{% endfor %}"
    "{{ ';' }}{% endfor %}{{ '<think></think>' if never }}"
)
CALL = '<think>\nLook it up.\n</think>\n\n<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'


@function_tool
def weather(city: str) -> str:
    """The weather in a city."""
    return f"rain in {city}"


@pytest.fixture
def run_config(http: Http, context: Context) -> Iterator[RunConfig]:
    """The SDK on this door, without the traces that it would send to OpenAI."""
    agents.set_tracing_disabled(True)
    kept, context.text.chat_template = context.text.chat_template, ChatTemplate(TEMPLATE)
    yield RunConfig(model_provider=OpenAIProvider(openai_client=http.openai, use_responses=True))
    context.text.chat_template = kept


def agent() -> Agent[None]:
    return Agent(
        name="Guide",
        instructions="Be brief.",
        model="base",
        tools=[weather],
        model_settings=ModelSettings(temperature=0),
    )


def prompts(http: Http) -> list[str]:
    return [http.context.text.decode(command.prompt_ids) for command in http.backend.commands]


FIRST = "weather;syst: Be brief.;user: Rain?;"
SECOND = FIRST + 'assi: <tool_call>{"city": "Oslo"}</tool_call>;tool: rain in Oslo;'


async def test_a_run(http: Http, run_config: RunConfig) -> None:
    http.answers(CALL, "Yes, rain.", finish=FinishReason.STOP)
    result = await Runner.run(agent(), "Rain?", run_config=run_config)
    assert result.final_output == "Yes, rain."
    assert prompts(http) == [FIRST, SECOND]
    assert [item.type for item in result.new_items] == [
        "reasoning_item",
        "tool_call_item",
        "tool_call_output_item",
        "message_output_item",
    ]
    assert result.context_wrapper.usage.total_tokens > 0
    again = await Runner.run(
        agent(), [*result.to_input_list(), {"role": "user", "content": "Sure?"}], run_config=run_config
    )
    assert again.final_output == "Yes, rain."
    assert prompts(http)[2] == SECOND + "assi: Yes, rain.;user: Sure?;"


async def test_a_run_that_is_streamed(http: Http, run_config: RunConfig) -> None:
    http.answers(CALL, "Yes, rain.", finish=FinishReason.STOP)
    result = Runner.run_streamed(agent(), "Rain?", run_config=run_config)
    text = ""
    async for event in result.stream_events():
        if event.type == "raw_response_event" and event.data.type == "response.output_text.delta":
            text += event.data.delta
    assert text == result.final_output == "Yes, rain."
    assert prompts(http) == [FIRST, SECOND]


async def test_calls_of_one_answer_and_of_the_next_are_told_apart(http: Http, run_config: RunConfig) -> None:
    """The ids of calls lead each output to its call, over all turns."""
    http.answers(CALL + CALL.partition("\n\n")[2], CALL, "Yes.", finish=FinishReason.STOP)
    result = await Runner.run(agent(), "Rain?", run_config=run_config)
    calls = [item["call_id"] for item in result.to_input_list() if item.get("type") == "function_call"]
    assert len(set(calls)) == len(calls) == 3
    assert prompts(http)[-1].count("rain in Oslo") == 3
