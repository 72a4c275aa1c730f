"""Embeddings: those of transformers + PEFT, however they are cut, batched and put back, and nothing of them is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from loramux_server.core.backend import EmbedCommand
from loramux_server.core.types import BASE, AdapterVersion, Pooling, Stack
from loramux_server.engine.transport.protocol import AbortCommand
from tests.engine import Engine, command, embedding, prompts, stack_of, version_of
from tests.oracle import Oracle, StackSpec
from tests.tiny import ARCHITECTURES

TOLERANCE = 1e-4
MEAN, LAST = Pooling.MEAN, Pooling.LAST
STACKS: list[list[tuple[str, float]]] = [
    [],
    [("all", 1.0)],
    [("rs", 1.0)],
    [("all", 0.7), ("rs", -0.5)],
    [("rs", 0.25), ("all", 1.5)],
]
RANKS = {"all": 4, "rs": 7}


class Setup:
    """A base with two adapters, and what its embeddings are."""

    def __init__(self, base: Path, folders: dict[str, Path], oracle: Oracle, state: Path) -> None:
        self.base, self.folders, self.oracle, self.state = base, folders, oracle, state
        self.versions = {name: version_of(folder, RANKS[name]) for name, folder in folders.items()}

    def stack(self, names: Sequence[tuple[str, float]]) -> Stack:
        return stack_of(*((self.versions[name], weight) for name, weight in names))

    def expected(self, prompt: Sequence[int], names: Sequence[tuple[str, float]], pooling: Pooling) -> Tensor:
        spec: StackSpec = [(self.folders[name], weight) for name, weight in names]
        states = self.oracle.states(prompt, spec)
        return states.mean(0) if pooling is MEAN else states[-1]

    def engine(self, **settings: object) -> Engine:
        return Engine(self.base, self.state, **settings)


@pytest.fixture(scope="module")
def make(  # type: ignore[no-untyped-def]
    tiny_base, make_adapter, oracle_of, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Setup]:
    def made(arch: str) -> Setup:
        base, root = tiny_base(arch), tmp_path_factory.mktemp("embeddings")
        folders = {
            "all": make_adapter(root / "all", base, rank=4, alpha=8, seed=1),
            "rs": make_adapter(root / "rs", base, rank=7, alpha=3, rslora=True, seed=2),
        }
        return Setup(base, folders, oracle_of(base), root / "state")

    return made


@pytest.fixture(scope="module")
def llama(make: Callable[[str], Setup]) -> Setup:
    return make("llama")


@pytest.fixture(scope="module")
def engine(llama: Setup) -> Iterator[Engine]:
    engine = llama.engine(max_batch_tokens=32)
    yield engine
    engine.close()


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_embeddings_equal_the_oracle(make: Callable[[str], Setup], arch: str) -> None:
    """Of all stacks and both poolings in one batch, beside answers, with texts longer than a step's budget."""
    setup = make(arch)
    engine = setup.engine(max_batch_tokens=32)
    try:
        cases = [(p, STACKS[i % 5], (MEAN, LAST)[i % 2]) for i, p in enumerate(prompts(10, seed=5))]
        free = [command(f"free-{i}", p, 10, setup.stack(STACKS[i])) for i, p in enumerate(prompts(5, seed=6))]
        engine.run(*free)
        again = [replace(c, id=f"again-{c.id}") for c in free]
        wanted = [
            embedding(f"e{i}", prompt, setup.stack(stack), pooling, normalize=False)
            for i, (prompt, stack, pooling) in enumerate(cases)
        ]
        engine.run(*again[:3], *wanted, *again[3:])
        for i, (prompt, stack, pooling) in enumerate(cases):
            found = engine.embedding(f"e{i}")
            assert len(found) == engine.info.hidden_size
            difference = (found - setup.expected(prompt, stack, pooling)).abs().max()
            assert difference < TOLERANCE, f"{stack} {pooling}: {difference}"
        for c in free:
            assert engine.tokens(f"again-{c.id}") == engine.tokens(c.id)
        assert not any(engine.loop.idle_state().values())
    finally:
        engine.close()


@pytest.mark.parametrize("budget", [1, 5, 512])
def test_the_size_of_a_chunk_does_not_show(llama: Setup, budget: int) -> None:
    engine = llama.engine(max_batch_tokens=budget)
    try:
        (prompt,) = prompts(1, lengths=(60, 61), seed=3)
        for pooling in Pooling:
            engine.run(embedding(f"{pooling}", prompt, llama.stack(STACKS[3]), pooling, normalize=False))
            difference = (engine.embedding(f"{pooling}") - llama.expected(prompt, STACKS[3], pooling)).abs().max()
            assert difference < TOLERANCE
    finally:
        engine.close()


def test_an_embedding_has_length_1_unless_told(engine: Engine, llama: Setup) -> None:
    (prompt,) = prompts(1, seed=4)
    for pooling in Pooling:
        engine.run(embedding(f"one-{pooling}", prompt, pooling=pooling))
        plain = llama.expected(prompt, (), pooling)
        found = engine.embedding(f"one-{pooling}")
        assert abs(float(found.norm()) - 1) < 1e-6
        assert (found - plain / plain.norm()).abs().max() < TOLERANCE


def test_nothing_of_a_text_is_kept(engine: Engine) -> None:
    """Neither found by a later prompt, nor taken from what an earlier one left, whose states are gone."""
    pages = engine.scheduler.pages
    pages.clear_cached()
    (prompt,) = prompts(1, lengths=(80, 81), seed=7)
    engine.run(embedding("first", prompt))
    assert not any(pages.indexed(page) for page in range(pages.pages))
    engine.run(command("cached", prompt, 2))
    assert any(pages.indexed(page) for page in range(pages.pages))
    hits = pages.hit_tokens
    engine.run(embedding("second", prompt))
    assert pages.hit_tokens == hits
    assert torch.equal(engine.embedding("first"), engine.embedding("second"))


def test_preemption_changes_nothing(engine: Engine, llama: Setup) -> None:
    texts = prompts(6, lengths=(60, 90), seed=9)
    wanted = [embedding(f"p{i}", p, llama.stack(STACKS[i % 5]), (MEAN, LAST)[i % 2]) for i, p in enumerate(texts)]
    engine.run(*wanted)
    page = engine.base.kv_shape.page_bytes(engine.base.dtype)
    tight = llama.engine(max_batch_tokens=16, kv_cache_memory=12 * page)
    try:
        tight.run(*(command(f"c{i}", p, 60) for i, p in enumerate(prompts(4, seed=10))), *wanted)
        assert tight.scheduler.preemptions > 0
        for c in wanted:
            assert (tight.embedding(c.id) - engine.embedding(c.id)).abs().max() < TOLERANCE
        assert not any(tight.loop.idle_state().values())
    finally:
        tight.close()


def test_a_request_that_is_aborted_is_forgotten(engine: Engine) -> None:
    (prompt,) = prompts(1, lengths=(120, 121), seed=11)
    engine.submit(embedding("gone", prompt))
    while not engine.loop.idle_state()["embeddings"]:
        engine.loop.turn()
    engine.submit(AbortCommand("gone"), command("after", [5, 6], 4))
    engine.finish("after")
    assert not any(engine.loop.idle_state().values())


def test_bad_commands_are_refused(engine: Engine) -> None:
    long = [5] * (engine.info.max_context + 1)
    bad = AdapterVersion("acme", 1, "not a digest", 4)
    cases: list[tuple[EmbedCommand, str]] = [
        (embedding("b1", []), "prompt_ids"),
        (embedding("b2", [5, 10**6]), "prompt_ids[1]"),
        (embedding("b3", long), "prompt_ids"),
        (embedding("b4", [5], stack_of((bad, 1.0))), "stack[0].adapter.digest"),
        (replace(embedding("b5", [5]), tenant=""), "tenant"),
    ]
    for asked, field in cases:
        engine.run(asked)
        failure = engine.failure(asked.id)
        assert failure is not None
        assert [v.field for v in failure.violations] == [field]
    engine.run(embedding("whole", long[:-1]))
    assert engine.failure("whole") is None


def test_states_that_are_not_finite_are_an_error(engine: Engine, llama: Setup) -> None:
    weight = engine.base.model.base_model.norm.weight
    kept = weight.data.clone()
    weight.data[0] = float("nan")
    try:
        engine.run(embedding("wild", [5, 6, 7], llama.stack(STACKS[1])), embedding("base", [5, 6, 7], BASE))
    finally:
        weight.data.copy_(kept)
    for id, code in (("wild", "failed_precondition"), ("base", "internal")):
        failure = engine.failure(id)
        assert failure is not None
        assert (failure.reason, failure.code) == ("LOGITS_NOT_FINITE", code)
    engine.run(embedding("well", [5, 6, 7]))
    assert engine.failure("well") is None
