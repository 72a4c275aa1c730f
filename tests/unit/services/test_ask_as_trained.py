"""Rows of tools and template arguments, and the requests that ask as they were trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from loramux_server.core.errors import Code, Error
from loramux_server.core.jobs import JobState, TrainRow, TrainSpec
from loramux_server.services.evaluation.questions import last_answer
from loramux_server.store.store import Store
from loramux_server.text import TextTokenizer
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
    card = (Path(server.store.adapters.resolve("acme", "default").path) / "README.md").read_text()
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
