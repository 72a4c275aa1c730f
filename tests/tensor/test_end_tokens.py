"""One list of end tokens in the engine: what a model's files and its chat template name, however they disagree."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest

from loramux_server.core.types import FinishReason, SamplingParams
from loramux_server.text.answers.response_format import parse_format
from tests.conftest import TinyBase
from tests.engine import Engine, command

TEXT_END, TURN_END = 0, 2
"""The tokenizer's end token, and the one of the template; generation_config.json names a third."""
NAMED = 100


@pytest.fixture(scope="module")
def engine(tiny_base: TinyBase, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    folder = tmp_path_factory.mktemp("disagree") / "base"
    shutil.copytree(tiny_base("llama"), folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": NAMED}))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "eos_token": "<|endoftext|>"}))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "eos_token_id": 5000}))  # beyond the vocabulary
    return Engine(folder, tmp_path_factory.mktemp("state"))


@pytest.mark.parametrize("end", [TEXT_END, TURN_END, NAMED])
def test_field_05_any_end_token_ends_an_answer(engine: Engine, end: int) -> None:
    assert set(engine.info.eos_token_ids) == {TEXT_END, TURN_END, NAMED}
    wanted = command(f"end-{end}", [5, 6, 7], 8, ignore_eos=False, logit_bias=((end, 100.0),))
    late = replace(wanted, id=f"late-{end}", sampling=replace(wanted.sampling, min_tokens=3))
    engine.run(wanted, late)
    assert engine.tokens(wanted.id) == [end]
    assert engine.reason(wanted.id) is FinishReason.STOP
    assert engine.tokens(late.id)[3:] == [end]
    assert not {TEXT_END, TURN_END, NAMED} & set(engine.tokens(late.id)[:3])


@pytest.mark.parametrize("end", [TEXT_END, TURN_END, NAMED])
def test_field_05_any_end_token_ends_a_shape(engine: Engine, end: int) -> None:
    wanted = command(f"shape-{end}", [5, 6, 7], 20, ignore_eos=False, logit_bias=((end, 100.0),))
    wanted = replace(wanted, grammar=parse_format({"type": "regex", "regex": "a{2,9}"}))
    engine.run(wanted)
    assert engine.tokens(wanted.id)[-1] == end
    assert engine.reason(wanted.id) is FinishReason.STOP


def test_a_shape_ends_by_itself_alone() -> None:
    sampling = SamplingParams(stop_token_ids=(7,), ignore_eos=True)
    assert sampling.end_ids((2,), shaped=True) == {2}
    assert sampling.end_ids((2,), shaped=False) == {7}
    assert SamplingParams(stop_token_ids=(7,)).end_ids((2,), shaped=False) == {2, 7}
