"""LangChain over the HTTP door: stacks by name, streams, tools and structured output."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel

from loramux_server.core.backend import EngineInfo
from loramux_server.core.types import FinishReason
from loramux_server.services.common.context import Context
from loramux_server.store.records import AdapterMeta
from loramux_server.text.chat.chat_template import ChatTemplate
from tests.unit.services.adapter_files import write_adapter

from .conftest import Http
from .test_tools import HERMES

STOP = FinishReason.STOP
CALL = '<tool_call>\n{"name": "opening", "arguments": {"shop": "Acme"}}\n</tool_call>'


class Place(BaseModel):
    """Where a shop is."""

    street: str
    number: int


@tool
def opening(shop: str) -> str:
    """When a shop opens."""
    return f"{shop} opens at nine"


@pytest.fixture
def hermes(context: Context) -> Iterator[None]:
    """The base has a template that writes calls."""
    kept, context.text.chat_template = context.text.chat_template, ChatTemplate(HERMES)
    yield
    context.text.chat_template = kept


def chat(http: Http, model: str = "base", **settings: Any) -> ChatOpenAI:
    return ChatOpenAI(model=model, base_url=f"http://{http.server.address}/v1", api_key="none", **settings)  # type: ignore[arg-type]


async def test_a_stack_at_once_and_streamed(http: Http, info: EngineInfo, tmp_path: Path) -> None:
    for name, b in (("acme", 0.25), ("json", 0.5)):
        http.context.store.adapters.publish(
            name, "default", write_adapter(tmp_path / name, info, b=b), AdapterMeta(4, 8.0)
        )
    http.answers("In the harbour street.", finish=STOP)
    model = chat(http, "acme+json:0.5", temperature=0.5, max_tokens=20, seed=3)
    answer = await model.ainvoke("Where is the shop?")
    assert answer.content == "In the harbour street."
    assert answer.response_metadata["model_name"] == "acme@1+json@1:0.5"
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["output_tokens"] > 0
    sampling, stack = http.backend.commands[-1].sampling, http.backend.commands[-1].stack
    assert (sampling.temperature, sampling.max_tokens, sampling.seed) == (0.5, 20, 3)
    assert [entry.weight for entry in stack.entries] == [1.0, 0.5]
    pieces = [piece async for piece in model.astream("Where is the shop?", stream_usage=True)]
    assert len(pieces) > 2
    assert "".join(str(piece.content) for piece in pieces) == "In the harbour street."
    assert sum(piece.usage_metadata["output_tokens"] for piece in pieces if piece.usage_metadata) > 0
    assert [str(answer.content) for answer in await model.abatch(["One?", "Two?"])] == ["In the harbour street."] * 2
    with pytest.raises(openai.NotFoundError, match="nobody"):
        await chat(http, "nobody").ainvoke("Where?")


async def test_a_tool_is_called_and_its_answer_goes_back(hermes: None, http: Http) -> None:
    http.answers(CALL, CALL, "At nine.", finish=STOP)
    model = chat(http).bind_tools([opening])
    asked = HumanMessage("When does Acme open?")
    streamed = [piece async for piece in model.astream([asked])]
    whole = streamed[0]
    for piece in streamed[1:]:
        whole = whole + piece
    answer = await model.ainvoke([asked])
    for calls in (answer.tool_calls, whole.tool_calls):  # type: ignore[attr-defined]
        assert [(call["name"], call["args"]) for call in calls] == [("opening", {"shop": "Acme"})]
    (call,) = answer.tool_calls
    result = await opening.ainvoke(call)
    assert isinstance(result, ToolMessage)
    done = await model.ainvoke([asked, answer, result])
    assert (done.content, done.tool_calls) == ("At nine.", [])
    assert "Acme opens at nine" in http.context.text.decode(http.backend.commands[-1].prompt_ids)


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
async def test_structured_output(hermes: None, http: Http, method: Any) -> None:
    place = {"street": "Harbour Street", "number": 7}
    call = f"<tool_call>\n{json.dumps({'name': 'Place', 'arguments': place})}\n</tool_call>"
    http.answers(json.dumps(place) if method == "json_schema" else call, finish=STOP)
    found = await chat(http).with_structured_output(Place, method=method).ainvoke("Where is the shop?")
    assert found == Place(**place)  # type: ignore[arg-type]
    grammar = http.backend.commands[-1].grammar
    assert grammar is not None  # the answer could be nothing else
    assert "street" in grammar.text


async def test_embeddings(http: Http) -> None:
    """Of texts as they are: unless told otherwise, LangChain cuts them into OpenAI's own tokens first."""
    model = OpenAIEmbeddings(
        model="base",
        base_url=f"http://{http.server.address}/v1",
        api_key="none",  # type: ignore[arg-type]
        check_embedding_ctx_length=False,
    )
    texts = ["Where is the shop?", "x"]
    counts = [float(len(http.context.text.encode(text))) for text in texts]
    assert [vector[0] for vector in await model.aembed_documents(texts)] == counts
    assert (await model.aembed_query(texts[0]))[0] == counts[0]
