"""Embeddings as OpenAI's own client asks for them."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from loramux_server.core.errors import Code, Error
from loramux_server.core.types import Pooling

from .conftest import Http

TINY = 2.0**-126
"""What the scripted engine ends every embedding with: exact in float32, and lost by a rounding."""


async def test_texts_tokens_and_both_encodings(http: Http) -> None:
    """The client asks for base64 unless told otherwise, and decodes it."""
    text = "Where is the shop?"
    ids = http.context.text.encode(text)
    inputs: list[Any] = [text, [text], ids, [ids]]
    for given in inputs:
        for encoding in ({}, {"encoding_format": "float"}, {"encoding_format": "base64"}):
            found = await http.openai.embeddings.create(model="base", input=given, **encoding)  # type: ignore[arg-type]
            assert (found.object, found.model) == ("list", "base")
            assert (found.usage.prompt_tokens, found.usage.total_tokens) == (len(ids), len(ids))
            (one,) = found.data
            assert (one.object, one.index) == ("embedding", 0)
            if encoding.get("encoding_format") != "base64":  # which the client leaves as it is if asked for
                assert one.embedding == [float(len(ids)), 0.5, -1.0, TINY]
            assert http.backend.embedded[-1].prompt_ids == tuple(ids)
    assert {(c.pooling, c.normalize) for c in http.backend.embedded} == {(Pooling.MEAN, True)}
    assert await http.calls.next() == ("createEmbedding", "OK")


async def test_several_are_in_order(http: Http) -> None:
    texts = ["nine", "The office opens at nine.", "x"]
    found = await http.openai.embeddings.create(
        model="base", input=texts, dimensions=4, user="u", extra_body={"pooling": "last", "normalize": False}
    )
    counts = [len(http.context.text.encode(text)) for text in texts]
    assert [(one.index, one.embedding[0]) for one in found.data] == [*enumerate(map(float, counts))]
    assert found.usage.prompt_tokens == sum(counts)
    assert {(c.pooling, c.normalize) for c in http.backend.embedded} == {(Pooling.LAST, False)}


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"input": []}, "input"),
        ({"input": ""}, "input[0]"),
        ({"input": ["x", ""]}, "input[1]"),
        ({"input": ["x", 5]}, "input"),
        ({"input": [5, -1]}, "input[0]"),
        ({"input": [[5], []]}, "input[1]"),
        ({"input": 5}, "input"),
        ({"input": [True]}, "input"),
        ({"dimensions": 2}, "dimensions"),
        ({"encoding_format": "int8"}, "encoding_format"),
        ({"pooling": "cls"}, "pooling"),
        ({"stream": True}, "stream"),
        ({"model": "acme:x"}, "model"),
        ({"model": "acme", "adapters": [{"name": "b"}]}, "adapters"),
    ],
)
async def test_bad_fields_are_named(http: Http, changes: dict[str, Any], param: str) -> None:
    answer = await http.raw.post("/v1/embeddings", json={"model": "base", "input": "x", **changes})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param
    assert http.backend.embedded == []


async def test_unknown_models_and_failures(http: Http) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        await http.openai.embeddings.create(model="nobody", input="x")
    assert caught.value.code == "model_not_found"
    http.backend.embed_error = Error(Code.UNAVAILABLE, "the engine is starting again", retry_after=5)
    with pytest.raises(openai.InternalServerError) as failed:
        await http.openai.embeddings.create(model="base", input=["x"] * 50)
    assert failed.value.response.status_code == 503
    assert failed.value.response.headers["retry-after"] == "5"
