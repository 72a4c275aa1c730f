"""Structured output: every answer keeps to its grammar, and what is around it notices nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from loramux_server.core.backend import GenerateCommand
from loramux_server.core.types import FinishReason, Grammar, GrammarKind
from loramux_server.engine.grammar import masks as grammars
from loramux_server.engine.transport.protocol import AbortCommand
from loramux_server.text.answers.forced_calls import ToolChoice, ToolMode, forced_calls
from loramux_server.text.answers.response_format import MAX_BYTES, parse_format
from loramux_server.text.answers.tool_calls import ToolCall, ToolCallReader, ToolFormat
from tests.engine import Engine, command, prompts
from tests.tiny import tokenizer

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["red", "green"]}, "maxItems": 2},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
    "x-guidance": {"whitespace_pattern": " ?"},
}
SHAPE = Grammar(GrammarKind.JSON_SCHEMA, json.dumps(SCHEMA))
DATE = Grammar(GrammarKind.REGEX, r"(19|20)\d\d-[01]\d-[0-3]\d")
COLOURS = parse_format({"type": "choice", "choice": ["red", "green", 'a "dark" blue', "grün\n"]})
SUM = Grammar(GrammarKind.LARK, 'start: num ("+" num){1,3}\nnum: /[0-9]{1,2}/')


@pytest.fixture(scope="module")
def engine(tiny_base, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:  # type: ignore[no-untyped-def]
    engine = Engine(tiny_base("llama"), tmp_path_factory.mktemp("state"))
    yield engine
    engine.close()


def ask(
    id: str, grammar: Grammar, prompt: list[int] | None = None, max_tokens: int = 120, **sampling: object
) -> GenerateCommand:
    settings = {"ignore_eos": False, "temperature": 1.0, **sampling}
    return replace(command(id, prompt or [5, 6, 7], max_tokens, **settings), grammar=grammar)


def text(engine: Engine, id: str) -> str:
    assert engine.failure(id) is None, engine.failure(id)
    return str(tokenizer().decode(engine.tokens(id), skip_special_tokens=True))


def check(answer: str) -> None:
    found = json.loads(answer)
    assert list(found) == ["name", "age", "tags"]
    assert isinstance(found["name"], str)
    assert len(found["name"]) <= 6
    assert 0 <= found["age"] <= 120
    assert len(found["tags"]) <= 2
    assert set(found["tags"]) <= {"red", "green"}


def test_every_answer_fits_its_schema(engine: Engine) -> None:
    """Greedy and sampled, all in one batch, whatever the seed and the temperature."""
    commands = [
        ask(f"fits-{i}", SHAPE, prompt, seed=i, temperature=(0.0, 0.5, 1.0, 3.0)[i % 4], top_k=(0, 5)[i % 2])
        for i, prompt in enumerate(prompts(24))
    ]
    engine.run(*commands)
    answers = [text(engine, c.id) for c in commands]
    for c, answer in zip(commands, answers, strict=True):
        assert engine.reason(c.id) is FinishReason.STOP
        check(answer)
    assert len(set(answers)) > 12


@pytest.mark.parametrize("ignore_eos", [False, True])
def test_each_kind_of_grammar(engine: Engine, ignore_eos: bool) -> None:
    commands = {
        f"{name}-{seed}-{ignore_eos}": ask(
            f"{name}-{seed}-{ignore_eos}", grammar, seed=seed, temperature=2.0, ignore_eos=ignore_eos
        )
        for name, grammar in {"date": DATE, "colour": COLOURS, "sum": SUM}.items()
        for seed in range(8)
    }
    engine.run(*commands.values())
    wanted = {
        "date": r"(19|20)\d\d-[01]\d-[0-3]\d",
        "colour": "red|green|" + re.escape('a "dark" blue') + "|grün\n",
        "sum": r"\d{1,2}(\+\d{1,2}){1,3}",
    }
    for id in commands:
        assert re.fullmatch(wanted[id.split("-")[0]], text(engine, id)), text(engine, id)
        assert engine.reason(id) is FinishReason.STOP


@pytest.mark.parametrize("format", ToolFormat)
def test_forced_calls_are_read_back(engine: Engine, format: ToolFormat) -> None:
    """Any base writes calls that its own family's reader finds, and arguments that fit; sampled and greedy."""
    tools = [{"name": name, "parameters": {k: v for k, v in SCHEMA.items() if k != "x-guidance"}} for name in "fg"]
    grammar = forced_calls(ToolChoice(ToolMode.REQUIRED, single=True), tools, format, max_bytes=MAX_BYTES)
    commands = [
        ask(f"{format}-{i}", grammar, p, max_tokens=160, seed=i, temperature=float(i % 3))
        for i, p in enumerate(prompts(6, seed=8))
    ]
    engine.run(*commands)
    for c in commands:
        reader = ToolCallReader(format)
        (call,) = [*reader.push(text(engine, c.id)), *reader.finish()]
        assert isinstance(call, ToolCall)
        assert call.name in ("f", "g")
        check(call.arguments)
        assert engine.reason(c.id) is FinishReason.STOP


def test_batch_mates_are_unchanged(engine: Engine) -> None:
    free = [command(f"free-{i}", p, 20, seed=i, temperature=float(i % 2)) for i, p in enumerate(prompts(8, seed=3))]
    engine.run(*free)
    alone = [engine.tokens(c.id) for c in free]
    again = [replace(c, id=f"again-{c.id}") for c in free]
    bound = [ask(f"mate-{i}", SHAPE, seed=i) for i in range(8)]
    engine.run(*(c for pair in zip(again, bound, strict=True) for c in pair))
    assert [engine.tokens(c.id) for c in again] == alone
    for c in bound:
        check(text(engine, c.id))


def test_an_answer_is_the_same_alone_and_in_a_batch(engine: Engine) -> None:
    batch = [ask(f"batch-{i}", SHAPE, p, seed=i) for i, p in enumerate(prompts(6, seed=5))]
    engine.run(*batch)
    for c in batch:
        alone = replace(c, id=f"alone-{c.id}")
        engine.run(alone)
        assert engine.tokens(alone.id) == engine.tokens(c.id)


@pytest.mark.slow
def test_preemption_changes_nothing(engine: Engine, tiny_base, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    commands = [ask(f"tight-{i}", SHAPE, p, seed=i) for i, p in enumerate(prompts(8, seed=7))]
    engine.run(*commands)
    page = engine.base.kv_shape.page_bytes(engine.base.dtype)
    tight = Engine(tiny_base("llama"), tmp_path, kv_cache_memory=20 * page)
    try:
        tight.run(*commands)
        assert tight.scheduler.preemptions > 0
        for c in commands:
            assert tight.tokens(c.id) == engine.tokens(c.id)
        assert tight.scheduler.pages.held == 0
    finally:
        tight.close()


def test_late_masks_hold_up_nobody(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any patience, rows are put aside and taken up again, and the answers are the same."""
    patient = [ask(f"patient-{i}", SHAPE, p, seed=i) for i, p in enumerate(prompts(4, seed=9))]
    engine.run(*patient)
    monkeypatch.setattr(grammars, "GRACE_SECONDS", 0.0)
    held = 0
    hold = engine.loop._grammars.hold

    def counted(*args):  # type: ignore[no-untyped-def]
        nonlocal held
        held += 1
        hold(*args)

    monkeypatch.setattr(engine.loop._grammars, "hold", counted)
    hasty = [replace(c, id=f"hasty-{c.id}") for c in patient]
    free = command("free-beside", [5, 6, 7], 40)
    engine.run(free, *hasty)
    assert held > 0
    for a, b in zip(patient, hasty, strict=True):
        assert engine.tokens(b.id) == engine.tokens(a.id)
    assert len(engine.tokens("free-beside")) == 40


def test_the_length_limit_is_told_from_a_complete_answer(engine: Engine) -> None:
    whole = ask("whole", DATE, temperature=0.0)
    engine.run(whole)
    exact = len(engine.tokens("whole"))
    engine.run(ask("exact", DATE, max_tokens=exact, temperature=0.0), ask("cut", DATE, max_tokens=3, temperature=0.0))
    assert (engine.reason("exact"), engine.tokens("exact")) == (FinishReason.STOP, engine.tokens("whole"))
    assert (engine.reason("cut"), engine.tokens("cut")) == (FinishReason.LENGTH, engine.tokens("whole")[:3])


def test_a_grammar_wins_over_a_minimum_length(engine: Engine) -> None:
    engine.run(ask("short", Grammar(GrammarKind.REGEX, "a|b"), min_tokens=10))
    assert text(engine, "short") in ("a", "b")


def test_an_open_end_is_the_models_choice(engine: Engine) -> None:
    """Where the grammar may end or go on, the model's end token ends it, and a minimum length holds."""
    end = {2: 60.0}
    grammar = Grammar(GrammarKind.REGEX, "a{2,50}")
    bias = {"logit_bias": tuple(end.items())}
    engine.run(ask("eager", grammar, **bias), ask("held", grammar, min_tokens=12, **bias))
    assert re.fullmatch("a{2,4}", text(engine, "eager"))
    assert len(engine.tokens("held")) == 13
    assert engine.reason("eager") is engine.reason("held") is FinishReason.STOP


def test_an_aborted_answer_is_forgotten(engine: Engine) -> None:
    engine.submit(ask("gone", SHAPE))
    engine.loop.turn()
    engine.submit(AbortCommand("gone"), command("after", [5, 6], 4))
    engine.finish("after")
    assert engine.loop.idle_state()["grammars"] == 0
    assert engine.scheduler.pages.held == 0


def test_a_bad_grammar_fails_alone(engine: Engine) -> None:
    bad = {
        "regex": Grammar(GrammarKind.REGEX, "(a"),
        "json": Grammar(GrammarKind.JSON_SCHEMA, "{"),
        "type": Grammar(GrammarKind.JSON_SCHEMA, '{"type": "objec"}'),
        "unsupported": Grammar(GrammarKind.JSON_SCHEMA, '{"type": "array", "uniqueItems": true}'),
        "remote": Grammar(GrammarKind.JSON_SCHEMA, '{"$ref": "http://localhost/x"}'),
        "lark": Grammar(GrammarKind.LARK, "start: x"),
        "tools": Grammar(GrammarKind.LARK, 'start: %json {"uniqueItems": true}', origin="tools"),
    }
    engine.run(command("beside-bad", [5, 6, 7], 12), *(ask(f"bad-{n}", g) for n, g in bad.items()))
    said = {"regex": "unclosed group", "type": "objec", "unsupported": "uniqueItems", "lark": "unknown name"}
    for name in bad:
        failure = engine.failure(f"bad-{name}")
        assert failure is not None
        assert failure.code == "invalid_argument"
        assert [v.field for v in failure.violations] == [bad[name].origin]
        assert said.get(name, "") in failure.message
        assert engine.tokens(f"bad-{name}") == []
    assert len(engine.tokens("beside-bad")) == 12
