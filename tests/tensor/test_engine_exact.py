"""Every path of the engine gives what transformers + PEFT give on the same NF4 weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.engine import Engine, check_tokens, command, prompts, stack_of, version_of
from tests.tiny import ARCHITECTURES

TOLERANCE = 1e-4


@pytest.fixture(scope="module", params=ARCHITECTURES)
def setup(request, tiny_base, make_adapter, oracle_of, tmp_path_factory):  # type: ignore[no-untyped-def]
    base: Path = tiny_base(request.param)
    root = tmp_path_factory.mktemp("exact")
    folders = {
        "all": make_adapter(root / "all", base, rank=4, alpha=8, seed=1),
        "rs": make_adapter(root / "rs", base, rank=7, alpha=3, rslora=True, seed=2),
        "upper": make_adapter(root / "upper", base, rank=2, alpha=6, layers=[1, 2], seed=3),
    }
    versions = {name: version_of(folder, {"all": 4, "rs": 7, "upper": 2}[name]) for name, folder in folders.items()}
    engine = Engine(base, root / "state", max_batch_tokens=32)
    yield engine, versions, folders, oracle_of(base)
    engine.close()


STACKS: list[list[tuple[str, float]]] = [
    [],
    [("all", 1.0)],
    [("rs", 1.0)],
    [("all", 0.7), ("rs", -0.5)],
    [("upper", 1.3)],
    [("rs", 0.25), ("upper", 1.0), ("all", 1.5)],
]


def test_mixed_batch_equals_oracle(setup):  # type: ignore[no-untyped-def]
    """Logits and greedy tokens of a batch of all kinds of stacks, with prompts longer than a step's budget."""
    engine, versions, folders, oracle = setup
    cases = list(zip(prompts(12, seed=5), STACKS * 2, strict=True))
    engine.run(
        *(
            command(f"m{i}", prompt, 8, stack_of(*((versions[n], w) for n, w in stack)))
            for i, (prompt, stack) in enumerate(cases)
        )
    )
    for i, (prompt, stack) in enumerate(cases):
        spec = [(folders[n], w) for n, w in stack]
        tokens = engine.tokens(f"m{i}")
        expected = oracle.logits([*prompt, *tokens], spec)
        got = torch.stack(engine.logits[f"m{i}"])
        difference = (got - expected[len(prompt) - 1 : -1]).abs().max()
        assert difference < TOLERANCE, f"stack {stack}: {difference}"
        check_tokens(tokens, oracle.greedy_gaps(prompt, 8, spec))
    assert {"prefill", "decode"} <= set(engine.kinds)
    assert not any(engine.scheduler.idle_state().values())


def test_score_equals_oracle(setup):  # type: ignore[no-untyped-def]
    """Log-probabilities of given continuations, in chunks; the second one's prompt comes from the prefix cache."""
    engine, versions, folders, oracle = setup
    prompt, *continuations = prompts(3, lengths=(25, 40), seed=9)
    block = engine.scheduler.pages.block
    for continuation, cached in zip(continuations, (0, (len(prompt) - 1) // block * block), strict=True):
        result = engine.score(prompt, continuation, stack_of((versions["all"], 0.5), (versions["upper"], 1.0)))
        logits = oracle.logits([*prompt, *continuation], [(folders["all"], 0.5), (folders["upper"], 1.0)])
        scored, wanted = logits[len(prompt) - 1 : -1], torch.tensor(continuation)
        expected = scored.log_softmax(-1).gather(-1, wanted[:, None]).flatten()
        assert torch.allclose(torch.tensor(result.logprobs), expected, atol=TOLERANCE)
        assert result.greedy == tuple((scored.argmax(-1) == wanted).tolist())
        assert result.cached_tokens == cached
