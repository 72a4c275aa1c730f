"""Drafts change how many steps an answer takes, and nothing else: the same tokens, reasons and log-probabilities."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

from loramux_server.core.backend import GenerateCommand, TokenEvent
from loramux_server.core.types import Grammar, GrammarKind, Stack
from loramux_server.engine.scheduling.drafts import NgramDrafter
from loramux_server.engine.scheduling.sequence import Sequence
from tests.engine import Engine, check_tokens, command, prompts, stack_of, version_of
from tests.tensor.scarce import Scarce

PARTS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.7, "seed": 5},
    {"temperature": 1.5, "seed": 6, "top_k": 8},
    {"temperature": 0.3, "seed": 7, "top_p": 0.8, "min_p": 0.01},
    {"repetition_penalty": 1.3},
    {"frequency_penalty": 0.5, "presence_penalty": 0.2, "temperature": 0.5, "seed": 8},
    {"logprobs": 3},
    {"min_tokens": 20, "logit_bias": ((7, 3.0),)},
]


@pytest.fixture(scope="module")
def setup(tiny_base, make_adapter, oracle_of, tmp_path_factory):  # type: ignore[no-untyped-def]
    base: Path = tiny_base("llama")
    root = tmp_path_factory.mktemp("drafts")
    folder = make_adapter(root / "adapter", base, rank=4, alpha=8, seed=1)
    engines = {way: Engine(base, root / way, speculate=way) for way in ("off", "ngram")}
    yield engines, folder, oracle_of(base)
    for engine in engines.values():
        engine.close()


class Guesser(NgramDrafter):
    """Drafts what requests are known to answer, with a wrong token here and there; as often as not nothing."""

    def __init__(self, known: dict[str, list[int]], vocabulary: int) -> None:
        super().__init__(row_cost=0.1)
        self._known, self._vocabulary, self._random = known, vocabulary, Random(1)

    def draft(self, seqs: Collection[Sequence], rows: int, most: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
        super().draft(seqs, rows, most)
        return {seq.id: self._guess(self._known[seq.id][seq.num_output :], most[seq.id]) for seq in seqs}

    def _guess(self, right: list[int], most: int) -> tuple[int, ...]:
        draw = self._random
        length = draw.choice([0, draw.randint(0, max(0, min(most, 15)))])
        return tuple(t if draw.random() < 0.85 else draw.randrange(self._vocabulary) for t in right[:length])


def repeating(seed: int) -> list[int]:
    """A prompt whose end has stood before, as a tiny model's answer soon does too."""
    part = prompts(1, lengths=(9, 12), seed=seed)[0]
    return part * 3


def requests(stacks: list[Stack], tokens: int = 40) -> Iterator[GenerateCommand]:
    for number, (parameters, stack) in enumerate(itertools.product(PARTS, stacks)):
        yield command(f"{number}", repeating(number), tokens, stack, ignore_eos=number % 3 > 0, **parameters)


def answers(engine: Engine, commands: list[GenerateCommand]) -> dict[str, Any]:
    engine.run(*commands)
    events = {c.id: [o.payload for o in engine.outputs[c.id] if isinstance(o.payload, TokenEvent)] for c in commands}
    return {
        id: ([e.token_ids for e in found], found[-1].finish_reason, [e.logprobs for e in found])
        for id, found in events.items()
    }


@pytest.mark.parametrize("together", [True, False])
def test_answers_are_those_of_steps_without_drafts(setup, together: bool) -> None:  # type: ignore[no-untyped-def]
    engines, folder, _ = setup
    stack = stack_of((version_of(folder, 4), 1.2))
    commands = [replace(c, id=f"{together}-{c.id}") for c in requests([Stack(), stack])]
    found: dict[str, Any] = {"off": {}, "ngram": {}}
    steps = {}
    for way, engine in engines.items():
        if way == "ngram":
            known = {id: [*itertools.chain(*tokens)] for id, (tokens, _, _) in found["off"].items()}
            engine.scheduler.drafter = drafter = Guesser(known, engine.info.vocab_size)
        before = len(engine.kinds)
        for batch in [commands] if together else [[c] for c in commands]:
            found[way] |= answers(engine, batch)
        steps[way] = len(engine.kinds) - before
        assert not any(engine.scheduler.idle_state().values())
    assert steps["ngram"] < 0.9 * steps["off"]
    for id, (tokens, reason, logprobs) in found["off"].items():
        got_tokens, got_reason, got_logprobs = found["ngram"][id]
        assert (got_tokens, got_reason) == (tokens, reason)
        for mine, theirs in zip(itertools.chain(*got_logprobs), itertools.chain(*logprobs), strict=True):
            assert mine.token_id == theirs.token_id
            assert mine.logprob == pytest.approx(theirs.logprob, abs=1e-4)
    assert 100 < drafter.accepted < drafter.drafted


def test_tokens_and_logits_are_the_oracles(setup) -> None:  # type: ignore[no-untyped-def]
    engines, folder, oracle = setup
    engine, stack, spec = engines["ngram"], stack_of((version_of(folder, 4), 0.8)), [(folder, 0.8)]
    engine.scheduler.drafter = NgramDrafter(row_cost=0.01)
    for number, prompt in enumerate(map(repeating, range(50, 54))):
        engine.run(command(f"oracle-{number}", prompt, 24, stack, ignore_eos=True))
        tokens = engine.tokens(f"oracle-{number}")
        expected = oracle.logits([*prompt, *tokens], spec)
        got = torch.stack(engine.logits[f"oracle-{number}"])
        assert (got - expected[len(prompt) - 1 : -1]).abs().max() < 1e-4
        check_tokens(tokens, oracle.greedy_gaps(prompt, 24, spec))
    assert 0 < engine.scheduler.drafter.accepted < engine.scheduler.drafter.drafted


def test_a_stop_token_inside_a_draft_ends_the_answer(setup) -> None:  # type: ignore[no-untyped-def]
    """What the draft says after it is never seen."""
    engines, _, _ = setup
    prompt = repeating(90)
    whole = engines["off"].generate(prompt, 40, ignore_eos=True)
    stop = whole[25]
    ended = [engine.generate(prompt, 40, ignore_eos=True, stop_token_ids=(stop,)) for engine in engines.values()]
    assert ended[0] == ended[1] == whole[: whole.index(stop) + 1]


def test_the_prefix_cache_holds_no_token_that_was_only_drafted(setup) -> None:  # type: ignore[no-untyped-def]
    """A prompt that goes on as an answer did finds its pages, and gives what it gives without a cache."""
    engines, _, oracle = setup
    prompt = repeating(91)
    engine = engines["ngram"]
    answer = engine.generate(prompt, 48, ignore_eos=True)
    hits = engine.stats().prefix_hit_tokens
    for end in (10, 20, 40, 48):
        longer = [*prompt, *answer[:end], 3]
        check_tokens(engine.generate(longer, 8, ignore_eos=True), oracle.greedy_gaps(longer, 8, []))
    assert engine.stats().prefix_hit_tokens > hits


@pytest.mark.parametrize("seed", [1, 2])
def test_a_grammar_holds_within_drafts(setup, seed: int) -> None:  # type: ignore[no-untyped-def]
    engines, _, _ = setup
    grammar = Grammar(GrammarKind.REGEX, "(ab|ba){12}")
    found: list[Any] = []
    for way, engine in engines.items():
        if found:
            engine.scheduler.drafter = drafter = Guesser({f"grammar-{way}-{seed}": found[0][0]}, engine.info.vocab_size)
        one = replace(
            command(f"grammar-{way}-{seed}", repeating(seed), 60, temperature=0.5, seed=seed), grammar=grammar
        )
        engine.run(one)
        found.append((engine.tokens(one.id), engine.reason(one.id)))
        assert sum(output.done for output in engine.outputs[one.id]) == 1
    assert found[0] == found[1]
    assert drafter.accepted


def test_selection_in_halves_keeps_drafts_with_their_rows(setup) -> None:  # type: ignore[no-untyped-def]
    """Where memory suffices for two rows at a time, each token comes once, and is the same."""
    engines, _, _ = setup
    commands = [replace(c, id=f"halves-{c.id}") for c in requests([Stack()], tokens=20)]
    whole = answers(engines["off"], commands)
    engine = engines["ngram"]
    known = {id: [*itertools.chain(*tokens)] for id, (tokens, _, _) in whole.items()}
    engine.scheduler.drafter = drafter = Guesser(known, engine.info.vocab_size)
    with Scarce("max", lambda logits, *_: logits.shape[0] > 2) as scarce:
        halved = answers(engine, commands)
    assert scarce.failed
    assert drafter.accepted
    assert {id: found[:2] for id, found in halved.items()} == {id: found[:2] for id, found in whole.items()}
    assert not any(engine.scheduler.idle_state().values())
