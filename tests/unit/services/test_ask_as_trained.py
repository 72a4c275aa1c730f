"""Rows of tools and template arguments, and the requests that ask as they were trained."""

from __future__ import annotations

import json
from typing import Any

import pytest

from loramux._wire.messages import requests
from loramux.v1 import inference_pb2
from loramux_server.api.convert.common import messages_from_proto
from loramux_server.core.callers.principal import LOCAL
from loramux_server.core.errors import Code, Error
from loramux_server.core.jobs import JobState, TrainRow, TrainSpec
from loramux_server.core.types import Message
from loramux_server.services.evaluation.questions import last_answer
from loramux_server.services.inference.service import GenerationService
from loramux_server.services.inference.types import GenerateRequest, ScoreRequest, TokenizeRequest
from loramux_server.store.store import Store
from loramux_server.text import TextTokenizer
from tests.adapter_files import folder_of
from tests.unit.text.templates import FAMILIES
from tests.unit.text.text_models import byte_level_folder

from .fakes import engine_info
from .test_training_jobs import Server, states

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "opening_hours",
            "parameters": {"type": "object", "properties": {"shop": {"type": "string"}}},
        },
    }
]
CALL = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "opening_hours", "arguments": '{"shop": "mill", "day": 7}'},
}
KWARGS = {"enable_thinking": False}
NO_THOUGHT = "<think>\n\n</think>\n\n"


def row(number: int, **more: Any) -> dict[str, Any]:
    """A question that is answered after a call of a tool."""
    messages = [
        {"role": "system", "content": [{"type": "text", "text": "You know "}, {"type": "text", "text": "the town."}]},
        {"role": "user", "content": f"When does shop {number} open?", "name": "Ann"},
        {"role": "assistant", "content": None, "tool_calls": [CALL], "weight": 0},
        {"role": "tool", "content": '{"open": 9}', "tool_call_id": "call_1", "name": "opening_hours"},
        {"role": "assistant", "content": f"Shop {number} opens at nine."},
    ]
    return {"messages": messages, "tools": TOOLS, **more}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    """A tokenizer whose chat template shows tools, calls and results, and may leave thoughts out."""
    template, bos, eos = FAMILIES["qwen"]
    folder = byte_level_folder(tmp_path_factory.mktemp("qwen"), template, bos_token=bos, eos_token=eos)
    return TextTokenizer.load(folder)


@pytest.fixture
def server(store: Store, text: TextTokenizer) -> Server:
    return Server.over(store, text, engine_info(text.vocab_size, max_context=2048))


async def trained(server: Server, rows: list[dict[str, Any]], **request: Any) -> list[TrainRow]:
    """The rows that the engine was given."""
    job = await server.job(dataset_id=await server.dataset(rows), **request)
    async with server.working():
        assert states(await server.finished(job))[-1] is JobState.SUCCEEDED
    return server.backend.rows[-1].train


def asked(row: dict[str, Any], given: dict[str, Any]) -> TokenizeRequest:
    """The question of a row as the Python client asks it, through the API's messages."""
    kwargs = {**given, **row.get("chat_template_kwargs", {})}
    sent = requests.tokenize(None, row["messages"][:-1], False, row["tools"], kwargs or None)
    read = inference_pb2.TokenizeRequest.FromString(sent.SerializeToString())
    return TokenizeRequest(
        messages=messages_from_proto(read.messages), tools=read.tools, chat_template_kwargs=read.chat_template_kwargs
    )


@pytest.mark.parametrize("given", [{}, KWARGS])
async def test_a_request_asks_with_the_tokens_that_came_before_the_answer(
    given: dict[str, Any], server: Server, text: TextTokenizer
) -> None:
    rows = [row(number) for number in range(8)] + [row(9, chat_template_kwargs={"enable_thinking": True})]
    spec = TrainSpec(chat_template_kwargs=json.dumps(given) if given else "")
    made = await trained(server, rows, spec=spec)
    service = GenerationService(server.context)
    for each, learned in zip(rows, made, strict=True):
        prompt, answer = last_answer(learned)
        request = asked(each, given)
        tokens = await service.tokenize(request)
        assert tokens.ids == prompt
        assert "opening_hours" in tokens.text
        await service.generate_once(
            GenerateRequest(
                messages=request.messages,
                tools=request.tools,
                chat_template_kwargs=request.chat_template_kwargs,
                principal=LOCAL,
            )
        )
        assert server.backend.commands[-1].prompt_ids == prompt
        said = text.decode_answer(answer)
        await service.score(
            ScoreRequest(
                continuation=said,
                messages=request.messages,
                tools=request.tools,
                chat_template_kwargs=request.chat_template_kwargs,
                principal=LOCAL,
            )
        )
        assert server.backend.scores[-1].prompt_ids == prompt
        assert answer[: len(server.backend.scores[-1].continuation_ids)] == server.backend.scores[-1].continuation_ids


USER = Message("user", "q")
DEEP = "[" * 150 + "]" * 150


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"tools": "{}"}, "tools"),
        ({"tools": "[5]"}, "tools"),
        ({"tools": "[{"}, "tools"),
        ({"tools": f'[{{"a": {DEEP}}}]'}, "tools"),
        ({"tools": "[" * 100_000}, "tools"),
        ({"tools": '[{"a": NaN}]'}, "tools"),
        ({"tools": '[{"a": "\\udfff"}]'}, "tools"),
        ({"chat_template_kwargs": "[]"}, "chat_template_kwargs"),
        ({"chat_template_kwargs": '{"a": 1e999}'}, "chat_template_kwargs"),
        ({"chat_template_kwargs": f'{{"a": {DEEP}}}'}, "chat_template_kwargs"),
        ({"chat_template_kwargs": '{"tools": []}'}, "chat_template_kwargs.tools"),
        ({"chat_template_kwargs": '{"chat_template": ""}'}, "chat_template_kwargs.chat_template"),
        ({"chat_template_kwargs": '{"a": "%s"}' % ("x" * 20_000)}, "chat_template_kwargs"),
        ({"messages": (Message("assistant", tool_calls="{"), USER)}, "messages[0].tool_calls"),
        ({"messages": (Message("assistant", tool_calls=f"[{DEEP}]"), USER)}, "messages[0].tool_calls"),
        (
            {"messages": (Message("assistant", tool_calls='[{"function": {"name": 5}}]'), USER)},
            "messages[0].tool_calls[0].function.name",
        ),
        ({"messages": (Message("user", ({"type": "image_url", "text": "x"},)),)}, "messages[0].content[0].type"),
        (
            {"messages": (Message("user", ({"type": "text", "text": "a"}, {"type": "text"})),)},
            "messages[0].content[1].text",
        ),
        ({"messages": (Message("user", "q", name="\ud800"),)}, "messages[0].name"),
        ({"messages": (Message("user", "q", tool_calls="[" + " " * (1 << 20) + "]"),)}, "messages"),
        ({"tools": "[" + " " * (1 << 20) + "]"}, "tools"),
        ({"tools": "[]", "messages": (Message("user", "q" * (1 << 20)),)}, "messages"),
        ({"messages": (), "prompt": "x", "tools": "[]"}, "tools"),
        ({"messages": (), "prompt": "x", "chat_template_kwargs": "{}"}, "chat_template_kwargs"),
    ],
)
async def test_what_is_refused_is_named(given: dict[str, Any], field: str, server: Server) -> None:
    service = GenerationService(server.context)
    given = {"messages": (USER,), **given}
    asks = (
        service.generate_once(GenerateRequest(**given, principal=LOCAL)),
        service.score(ScoreRequest(continuation="x", **given, principal=LOCAL)),
        service.tokenize(TokenizeRequest(**given)),
    )
    for ask in asks:
        with pytest.raises(Error) as caught:
            await ask
        assert caught.value.code is Code.INVALID_ARGUMENT
        assert [violation.field for violation in caught.value.violations] == [field]
    assert server.backend.commands == server.backend.scores == []


async def test_an_answer_is_gone_on_with_beside_tools(server: Server, text: TextTokenizer) -> None:
    messages = (USER, Message("assistant", "It opens"))
    request = TokenizeRequest(
        messages=messages,
        tools=json.dumps(TOOLS),
        chat_template_kwargs=json.dumps(KWARGS),
        continue_final_message=True,
    )
    tokens = await GenerationService(server.context).tokenize(request)
    assert "opening_hours" in tokens.text
    assert tokens.text.endswith("It opens")


@pytest.mark.parametrize("given", [{}, KWARGS])
async def test_a_job_shows_the_template_its_tools_and_arguments(
    given: dict[str, Any], server: Server, text: TextTokenizer
) -> None:
    spec = TrainSpec(chat_template_kwargs=json.dumps(given) if given else "")
    rows = await trained(server, [row(number) for number in range(8)], spec=spec)
    for number, each in enumerate(rows):
        prompt, answer = last_answer(each)
        shown = text.decode(prompt, skip_special_tokens=False)
        assert "opening_hours" in shown
        assert '{"shop": "mill", "day": 7}' in shown
        assert shown.endswith(NO_THOUGHT) is bool(given)
        assert text.decode_answer(answer).endswith(f"Shop {number} opens at nine.")
    card = (folder_of(server.store, "acme") / "README.md").read_text()
    assert ("chat_template_kwargs={'enable_thinking': False}" in card) is bool(given)


async def test_arguments_of_a_row_win(server: Server, text: TextTokenizer) -> None:
    rows = [row(number) for number in range(8)] + [row(9, chat_template_kwargs={"enable_thinking": True})]
    found = await trained(server, rows, spec=TrainSpec(chat_template_kwargs=json.dumps(KWARGS)))
    shown = [text.decode(last_answer(each)[0], skip_special_tokens=False) for each in found]
    assert [each.endswith(NO_THOUGHT) for each in shown] == [True] * 8 + [False]


async def test_questions_and_the_comparison_have_the_arguments(server: Server, text: TextTokenizer) -> None:
    held_out = await server.dataset([row(number) for number in range(20, 24)])
    spec = TrainSpec(chat_template_kwargs=json.dumps(KWARGS))
    await trained(
        server, [row(n) for n in range(8)], spec=spec, validation_dataset_id=held_out, compare_prompt="Shops open."
    )
    asked = [text.decode(command.prompt_ids, skip_special_tokens=False) for command in server.backend.commands]
    assert len(asked) == 3 * 4
    assert sum("Shops open." in each for each in asked) == 4
    assert all(each.endswith(NO_THOUGHT) and "opening_hours" in each for each in asked)


@pytest.mark.parametrize(
    ("kwargs", "field"),
    [
        ('{"messages": []}', "chat_template_kwargs.messages"),
        ('{"enable_thinking": NaN}', "chat_template_kwargs"),
        ("enable_thinking", "chat_template_kwargs"),
    ],
)
async def test_arguments_of_a_job_that_are_refused(kwargs: str, field: str, server: Server) -> None:
    with pytest.raises(Error) as caught:
        await server.job(spec=TrainSpec(chat_template_kwargs=kwargs))
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert [violation.field for violation in caught.value.violations] == [field]
