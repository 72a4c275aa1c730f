"""Merged adapters against the stack that they were merged from, and against PEFT's own merges."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from loramux_server.core.compose import ComposeCommand, ComposeMethod
from loramux_server.core.errors import Code, Error
from loramux_server.core.types import Stack
from loramux_server.peft.compose import compose
from loramux_server.peft.folder import read_adapter
from loramux_server.services.adapters.compose_worker import run_composer
from tests.engine import BLOBS, stack_of, version_of
from tests.peft_read import read_folder
from tests.tensor.engine_cases import Case, Cases, make_cases

APART = [m for m in ComposeMethod if m not in (ComposeMethod.CAT, ComposeMethod.SVD)]


@pytest.fixture(scope="module")
def cases(tiny_base, make_adapter, tmp_path_factory) -> Iterator[Cases]:  # type: ignore[no-untyped-def]
    made = make_cases(tiny_base("llama"), tmp_path_factory.mktemp("adapters"), make_adapter)
    yield made
    made.close()


def command(cases: Cases, stack: Stack, method: ComposeMethod, output: Path, **more: Any) -> ComposeCommand:
    return replace(
        ComposeCommand(
            stack,
            method,
            str(BLOBS.reader.folder),
            str(output),
            dict(cases.reference.info.linear_modules),
            base_name="tiny",
        ),
        **more,
    )


def deltas(cases: Cases, stack: Stack) -> dict[str, Tensor]:
    """Module -> the weighted sum of the stack's deltas, in float64."""
    found: dict[str, Tensor] = {}
    for entry in stack.entries:
        pairs = read_adapter(BLOBS.reader, entry.adapter, cases.reference.info.linear_modules, None)
        for name, pair in pairs.items():
            delta = entry.weight * pair.scaling * (pair.b.double() @ pair.a.double())
            found[name] = found.get(name, torch.zeros_like(delta)) + delta
    return found


def distance(wanted: Mapping[str, Tensor], got: Mapping[str, Tensor]) -> float:
    assert wanted.keys() == got.keys()
    missed = math.sqrt(sum(float((wanted[n] - got[n]).norm()) ** 2 for n in wanted))
    return missed / math.sqrt(sum(float(w.norm()) ** 2 for w in wanted.values()))


@pytest.mark.parametrize(
    "entries",
    [
        [("all", 1.0)],
        [("all", 0.7), ("rs", -0.5)],
        [("rs", 0.25), ("upper", 1.0), ("all", 1.5)],
        [("attention", 1.0), ("upper", 0.5)],  # modules of different kinds and layers: no short list names them
    ],
)
def test_cat_gives_the_stacks_logits(cases: Cases, tmp_path: Path, entries: list[tuple[str, float]]) -> None:
    stack = cases.stack(entries)
    result = compose(command(cases, stack, ComposeMethod.CAT, tmp_path / "cat"))
    assert result.error == 0
    merged = stack_of((version_of(tmp_path / "cat", stack.rank), 1.0))
    assert distance(deltas(cases, stack), deltas(cases, merged)) < 1e-6
    for prompt in cases.prompts[:3]:
        as_stack = cases.reference.score(prompt, prompt[:8], stack).logprobs
        as_one = cases.reference.score(prompt, prompt[:8], merged).logprobs
        assert as_one == pytest.approx(as_stack, abs=2e-4)
    # A greedy answer through the whole engine, tokens and all.
    alone = cases.alone(Case(cases.prompts[0], stack))
    assert cases.reference.generate(cases.prompts[0], len(alone), merged) == [token for token, _ in alone]


def test_peft_loads_a_merge_as_the_same_adapter(cases: Cases, tmp_path: Path, oracle_of) -> None:  # type: ignore[no-untyped-def]
    entries = [("attention", 1.0), ("upper", 0.5)]
    compose(command(cases, cases.stack(entries), ComposeMethod.CAT, tmp_path / "cat"))
    oracle = oracle_of(cases.base)
    prompt = cases.prompts[0]
    as_stack = oracle.logits(prompt, [(cases.folders[name], weight) for name, weight in entries])
    assert torch.allclose(oracle.logits(prompt, [(tmp_path / "cat", 1.0)]), as_stack, atol=1e-3)


def test_cat_keeps_every_stored_value_when_the_factors_are_equal(cases: Cases, tmp_path: Path) -> None:
    compose(command(cases, cases.stack([("all", 1.0)]), ComposeMethod.CAT, tmp_path / "one"))
    before = load_file(cases.folders["all"] / "adapter_model.safetensors")
    after = load_file(tmp_path / "one" / "adapter_model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_cat_beyond_the_largest_rank_says_what_to_do(cases: Cases, tmp_path: Path) -> None:
    stack = cases.stack([("all", 1.0), ("rs", 1.0)])
    with pytest.raises(Error, match="svd") as caught:
        compose(command(cases, stack, ComposeMethod.CAT, tmp_path / "cat", max_rank=10))
    assert caught.value.reason == "RANK_TOO_LARGE"
    assert not (tmp_path / "cat").exists()


@pytest.mark.parametrize("rank", [1, 4, 11, 64])
def test_svd_is_the_best_of_its_rank(cases: Cases, tmp_path: Path, rank: int) -> None:
    stack = cases.stack([("all", 0.7), ("rs", -0.5)])
    result = compose(command(cases, stack, ComposeMethod.SVD, tmp_path / "svd", rank=rank))
    wanted = deltas(cases, stack)
    best = math.sqrt(sum(float((torch.linalg.svdvals(w)[rank:] ** 2).sum()) for w in wanted.values()))
    best /= math.sqrt(sum(float(w.norm()) ** 2 for w in wanted.values()))
    got = deltas(cases, stack_of((version_of(tmp_path / "svd", rank), 1.0)))
    assert distance(wanted, got) == pytest.approx(best, abs=1e-5)
    assert result.error == pytest.approx(best, abs=1e-5)
    assert (result.error < 1e-5) == (rank >= 11)  # 4 + 7 is all the rank there is


@pytest.mark.parametrize("method", APART)
def test_the_approximations_are_pefts(  # type: ignore[no-untyped-def]
    cases: Cases, tmp_path: Path, make_adapter, method: ComposeMethod, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft import PeftModel
    from peft.tuners.lora import model as peft_lora

    from tests.oracle import load_plain

    folders = [
        make_adapter(tmp_path / f"a{i}", cases.base, rank=4, alpha=8 + 4 * i, targets=targets, seed=20 + i)
        for i, targets in enumerate((["q_proj", "down_proj"], ["q_proj", "v_proj"]))
    ]
    stack = stack_of((version_of(folders[0], 4), 0.8), (version_of(folders[1], 4), -0.6))
    result = compose(command(cases, stack, method, tmp_path / "merged", density=0.6, seed=5))

    model = PeftModel.from_pretrained(load_plain(cases.base, torch.float32), str(folders[0]), adapter_name="x")
    model.load_adapter(str(folders[1]), adapter_name="y")
    # PEFT draws initial values for the new adapter first, so the seed is set when the merging begins.
    drawn = iter([lambda: torch.manual_seed(5)])
    original = peft_lora.dare_ties
    monkeypatch.setattr(peft_lora, "dare_ties", lambda *given: [next(drawn, lambda: None)(), original(*given)][1])
    model.base_model.add_weighted_adapter(["x", "y"], [0.8, -0.6], "z", combination_type=method.value, density=0.6)
    _, ours = read_folder(tmp_path / "merged", cases.reference.info.linear_modules)
    adapted = {n: m for n, m in model.named_modules() if "z" in getattr(m, "lora_A", {})}
    theirs = {n.removeprefix("base_model.model."): m for n, m in adapted.items()}
    assert ours.keys() == theirs.keys()
    for name, pair in ours.items():
        layer = theirs[name]
        # What is drawn depends on the order of the modules, which is the model's for both.
        assert torch.allclose(pair.a, layer.lora_A["z"].weight, atol=1e-6), name
        assert torch.allclose(pair.b * pair.scaling, layer.lora_B["z"].weight * layer.scaling["z"], atol=1e-5), name
    got = deltas(cases, stack_of((version_of(tmp_path / "merged", 4), 1.0)))
    assert result.error == pytest.approx(distance(deltas(cases, stack), got), rel=1e-5)
    assert result.error > 0.01


def test_ranks_must_be_equal_for_the_approximations(cases: Cases, tmp_path: Path) -> None:
    stack = cases.stack([("all", 1.0), ("rs", 1.0)])
    with pytest.raises(Error, match="ranks 4, 7") as caught:
        compose(command(cases, stack, ComposeMethod.LINEAR, tmp_path / "linear"))
    assert caught.value.code is Code.INVALID_ARGUMENT


def test_what_cancels_out_is_refused(cases: Cases, tmp_path: Path, make_adapter) -> None:  # type: ignore[no-untyped-def]
    twin = make_adapter(tmp_path / "twin", cases.base, rank=4, alpha=8, seed=1)
    stack = stack_of((cases.versions["all"], 1.0), (version_of(twin, 4), -1.0))
    with pytest.raises(Error) as caught:
        compose(command(cases, stack, ComposeMethod.LINEAR, tmp_path / "none"))
    assert caught.value.reason == "ADAPTER_WITHOUT_EFFECT"
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
async def test_in_a_process_of_its_own(cases: Cases, tmp_path: Path) -> None:
    """The same bytes as here, and the same refusals; the front needs no torch for it."""
    stack = cases.stack([("all", 0.7), ("rs", -0.5)])
    here = command(cases, stack, ComposeMethod.SVD, tmp_path / "here", rank=3)
    expected = compose(here)
    assert (await run_composer(replace(here, output=str(tmp_path / "there")))).error == pytest.approx(expected.error)
    a, b = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("here", "there"))
    assert all(torch.allclose(a[key], b[key], atol=1e-5) for key in a)
    with pytest.raises(Error, match="equal ranks") as caught:
        await run_composer(replace(here, method=ComposeMethod.LINEAR, output=str(tmp_path / "no")))
    assert (caught.value.code, caught.value.reason) == (Code.INVALID_ARGUMENT, "RANKS_DIFFER")
