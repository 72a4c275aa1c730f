"""Whatever the logits say: an answer that ends with "stop" in a shape is a text of that shape."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from loramux_server.core.backend import GenerateCommand, TokenEvent
from loramux_server.core.types import FinishReason, SamplingParams
from loramux_server.engine.execution.token_selection import TokenSelector
from loramux_server.engine.grammar.masks import GrammarMasks
from loramux_server.engine.memory_pressure import MemoryPressure
from loramux_server.engine.scheduling.new_sequence import make_sequence
from loramux_server.engine.scheduling.sequence import Sequence
from loramux_server.engine.training_share import TrainingShare
from loramux_server.engine.transport.protocol import Output
from loramux_server.services.inference.choice import ChoiceDecoder
from loramux_server.text import StopMatcher, TextTokenizer
from loramux_server.text.answers.response_format import parse_format
from tests.examples import examples, few
from tests.unit.engine.simulation import FakeTraining, make_scheduler
from tests.unit.text.text_models import CONTROL, sentencepiece_folder

SECONDS = 10.0
MORE = 64
"""Logits that the model has beyond the tokenizer's vocabulary."""


class Shaper:
    """Answers of random logits through the token selector and the grammar processes of one tokenizer."""

    def __init__(self, folder: Path) -> None:
        self.text = TextTokenizer.load(folder)
        self.eos = self.text.eos_token_ids
        self.vocab = self.text.vocab_size + MORE
        self.woken = threading.Event()
        self.grammars = GrammarMasks(folder, self.eos, self.woken.set)
        self.count = 0
        share = TrainingShare(FakeTraining(), 0.0, 1.0, lambda job, error: None)
        self._pressure = MemoryPressure(make_scheduler(), share)

    def answer(self, shape: dict[str, Any], seed: int, **sampling: Any) -> tuple[str, FinishReason]:
        """Text and end of one answer, as the service hands it out."""
        self.count += 1
        params = SamplingParams(**{"max_tokens": 60, "temperature": 1.0, "seed": seed, **sampling})
        command = GenerateCommand(
            str(self.count), (self.vocab - 1,), sampling=params, grammar=parse_format(shape), tenant="default"
        )
        seq = make_sequence(command, self.vocab, 1000)
        events: list[TokenEvent] = []
        selector = TokenSelector(
            self.grammars, self.eos, self._finish, self._fail, lambda output: self._take(output, events), self._pressure
        )
        draw = torch.Generator().manual_seed(seed)
        self.grammars.open(seq)
        while not (events and events[-1].finish_reason):
            assert self.woken.wait(SECONDS)
            self.woken.clear()
            selector.handle_masks()
            while not (events and events[-1].finish_reason) and self.grammars.ready(seq):
                logits = 4 * torch.randn(1, self.vocab, generator=draw)
                logits[:, list(self.eos)] += 8.0
                selector.settle(selector.launch([seq], logits, [0]))
        decoder = ChoiceDecoder(
            0, self.text.detokenizer(exact=True), StopMatcher(()), params.end_ids(self.eos, shaped=True)
        )
        text = "".join(decoder.push(event).text for event in events)
        assert decoder.finish_reason is not None
        return text, decoder.finish_reason

    def _finish(self, seq: Sequence) -> None:
        self.grammars.close(seq.id)

    def _fail(self, seq: Sequence, error: Exception) -> None:
        self.grammars.close(seq.id)
        raise AssertionError(error)

    @staticmethod
    def _take(output: Output, events: list[TokenEvent]) -> None:
        assert isinstance(output.payload, TokenEvent)
        events.append(output.payload)


@pytest.fixture(scope="module", params=few(["default", "sentencepiece", "sentencepiece-legacy"]))
def shaper(
    request: pytest.FixtureRequest, default_base: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Shaper]:
    folder = default_base
    if request.param != "default":
        folder = sentencepiece_folder(tmp_path_factory.mktemp(request.param), legacy="legacy" in request.param)
    shaper = Shaper(folder)
    yield shaper
    shaper.grammars.stop()


fragments = st.sampled_from(
    [
        *CONTROL[:4],
        "</s>",
        "<think>",
        "a",
        "b c",
        " ",
        "\n",
        '"',
        "\\",
        "/",
        "é",
        "🙂",
        "東京",
        "<|",
        "|>",
        "▁",
        "<0x41>",
    ]
)
texts = st.lists(fragments, min_size=1, max_size=4).map("".join)
choices = st.lists(texts, min_size=1, max_size=4, unique=True)
patterns = st.lists(
    st.one_of(
        texts.map(re.escape),
        texts.map(lambda text: f"({re.escape(text)}|x)?"),
        st.sampled_from(["[a-c<|>]{1,4}", ".{0,5}", " ?", "[0-9]{2}", r"[^\n\"\\]{1,6}", "(ab|a🙂)+"]),
    ),
    min_size=1,
    max_size=3,
).map("".join)


def _fits(value: Any, schema: dict[str, Any]) -> bool:
    """Whether a document fits one of the schemas below."""
    if "enum" in schema:
        return value in schema["enum"]
    if "const" in schema:
        return bool(value == schema["const"])
    if "pattern" in schema:
        # A pattern of JSON Schema need not match the whole text.
        return isinstance(value, str) and re.search(schema["pattern"], value) is not None
    if schema.get("type") == "string":
        return isinstance(value, str) and len(value) <= schema["maxLength"]
    properties = schema["properties"]
    return list(value) == list(properties) and all(_fits(value[name], part) for name, part in properties.items())


leaves = st.one_of(
    choices.map(lambda found: {"enum": found}),
    texts.map(lambda text: {"const": text}),
    texts.map(lambda text: {"type": "string", "pattern": re.escape(text) + "[ab]{0,3}"}),
    st.just({"type": "string", "maxLength": 5}),
)
schemas = st.one_of(
    leaves,
    st.dictionaries(texts, leaves, min_size=1, max_size=2).map(
        lambda parts: {
            "type": "object",
            "properties": parts,
            "required": list(parts),
            "additionalProperties": False,
        }
    ),
)
Shape = tuple[dict[str, Any], Callable[[str], bool]]
shapes: st.SearchStrategy[Shape] = st.one_of(
    choices.map(lambda found: ({"type": "choice", "choice": found}, found.__contains__)),
    patterns.map(
        lambda text: ({"type": "regex", "regex": text}, lambda answer: re.fullmatch(text, answer) is not None)
    ),
    schemas.map(
        lambda schema: (
            {"type": "json_schema", "json_schema": json.dumps(schema)},
            lambda answer: _fits(json.loads(answer), schema),
        )
    ),
)


def test_field_06_an_answer_that_stops_matches_its_shape(shaper: Shaper) -> None:
    ends = set()

    @examples(60)
    @given(
        shapes,
        st.integers(0, 2**32),
        st.fixed_dictionaries(
            {},
            optional={
                "min_tokens": st.integers(0, 8),
                "ignore_eos": st.booleans(),
                "stop_token_ids": st.lists(st.integers(0, shaper.text.vocab_size - 1), max_size=8).map(tuple),
                "max_tokens": st.integers(1, 80),
                "repetition_penalty": st.sampled_from([0.5, 1.5]),
            },
        ),
    )
    def matches(shape: Shape, seed: int, sampling: dict[str, Any]) -> None:
        assume(sampling.get("min_tokens", 0) <= sampling.get("max_tokens", 80))
        wanted, fits = shape
        text, end = shaper.answer(wanted, seed, **sampling)
        assert end in (FinishReason.STOP, FinishReason.LENGTH)
        ends.add(end)
        if end is FinishReason.STOP:
            assert fits(text), (wanted, text)

    matches()
    assert FinishReason.STOP in ends


@pytest.mark.parametrize("shape", ["choice", "enum", "const", "regex"])
@pytest.mark.parametrize("text", ["a<|im_start|>b", "<|im_end|>", "</s>", " <|endoftext|> <|im_start|>"])
def test_field_06_text_of_special_tokens_is_spelt_in_ordinary_ones(shaper: Shaper, shape: str, text: str) -> None:
    wanted: dict[str, dict[str, Any]] = {
        "choice": {"type": "choice", "choice": [text]},
        "enum": {"type": "json_schema", "json_schema": json.dumps({"enum": [text]})},
        "const": {"type": "json_schema", "json_schema": json.dumps({"const": text})},
        "regex": {"type": "regex", "regex": re.escape(text)},
    }
    expected = text if shape in ("choice", "regex") else json.dumps(text)
    assert shaper.answer(wanted[shape], 0) == (expected, FinishReason.STOP)
