"""The base's weights on the CPU: packed and unpacked are bitsandbytes' values, forward and backward, in any shape."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from torch import Tensor, nn

from loramux_server.core.settings import EngineSettings
from loramux_server.model.resident import ResidentBase
from tests.engine import Engine, check_tokens, command, prompts, stack_of, version_of
from tests.examples import few
from tests.oracle import Oracle, load_plain

SHAPES = {"odd": {"head_dim": 12, "intermediate_size": 100}, "even": {}}
"""``odd``: outputs of 24, 48 and 100 features, none of which 32 divides; inputs of 48 and 100 stay unquantised."""


@pytest.fixture(scope="module", params=few(SHAPES))
def base(request, tiny_base) -> Path:  # type: ignore[no-untyped-def]
    return tiny_base("llama", **SHAPES[request.param])  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def oracle(base: Path, oracle_of) -> Oracle:  # type: ignore[no-untyped-def]
    return oracle_of(base)  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def weights(base: Path) -> dict[str, Tensor]:
    """Module name -> weight [out, in], dequantised where it is NF4."""
    found = {}
    plain = load_plain(base, torch.float32)  # not the suite's oracle, which PEFT may have wrapped by now
    for name, module in plain.named_modules():
        if isinstance(module, nn.Linear) and module is not plain.get_output_embeddings():
            weight: Any = module.weight
            state = getattr(weight, "quant_state", None)
            found[name] = weight.data.float() if state is None else dequantize_4bit(weight.data, state).float()
    return found


@pytest.fixture(scope="module", params=["packed", "unpacked"])
def resident(request, base: Path) -> ResidentBase:  # type: ignore[no-untyped-def]
    settings = EngineSettings(device="cpu", dtype="float32", cpu_weights=request.param)
    made = ResidentBase.load(settings, base)
    assert made.packed == (request.param == "packed")
    return made


def test_values_are_those_of_bitsandbytes_to_the_bit(resident: ResidentBase, weights: dict[str, Tensor]) -> None:
    assert set(resident.modules) == set(weights)
    for group in resident.groups:
        joined = torch.cat([weights[name] for name in group.names])
        with torch.no_grad():
            # A product with the identity is exact: each output is one weight and zeros.
            assert torch.equal(group.base(torch.eye(group.in_features)), joined.T)


def test_gradients_are_those_of_the_dequantised_weights(resident: ResidentBase, weights: dict[str, Tensor]) -> None:
    for group in resident.groups:
        joined = torch.cat([weights[name] for name in group.names])
        x = torch.randn(5, group.in_features, generator=torch.Generator().manual_seed(0), requires_grad=True)
        pull = torch.randn(5, len(joined), generator=torch.Generator().manual_seed(1))
        out = group.base(x)
        assert out.dtype is torch.float32
        out.backward(pull)
        assert x.grad is not None
        assert torch.allclose(out.detach(), x.detach() @ joined.T, rtol=1e-5, atol=1e-5)
        assert torch.allclose(x.grad, pull @ joined, rtol=1e-5, atol=1e-5)


def test_serving_first_costs_no_gradient(resident: ResidentBase, weights: dict[str, Tensor]) -> None:
    """A forward in inference mode, then one with gradient on the same weights."""
    group = resident.groups[0]
    with torch.inference_mode():
        group.base(torch.ones(3, group.in_features))
    x = torch.ones(2, group.in_features, requires_grad=True)
    group.base(x).sum().backward()
    joined = torch.cat([weights[name] for name in group.names])
    assert x.grad is not None
    assert torch.allclose(x.grad, joined.sum(0).expand(2, -1), rtol=1e-4, atol=1e-5)


def test_packed_takes_less_memory(base: Path) -> None:
    settings = [EngineSettings(device="cpu", dtype="float32", cpu_weights=w) for w in ("packed", "unpacked")]  # type: ignore[arg-type]
    packed, unpacked = (sum(g.base.nbytes for g in ResidentBase.load(s, base).groups) for s in settings)
    assert packed < unpacked / 2


@pytest.mark.parametrize("cpu_weights", ["packed", "unpacked"])
def test_tokens_are_the_oracles(base: Path, oracle: Oracle, make_adapter, tmp_path: Path, cpu_weights: str) -> None:  # type: ignore[no-untyped-def]
    folder = make_adapter(tmp_path / "adapter", base, rank=5, seed=1)
    engine = Engine(base, tmp_path / "state", cpu_weights=cpu_weights)
    stack = stack_of((version_of(folder, 5), 0.8))
    texts = prompts(3, seed=2)
    engine.run(*(command(f"r{i}", text, 8, stack if i else stack_of()) for i, text in enumerate(texts)))
    for i, text in enumerate(texts):
        check_tokens(engine.tokens(f"r{i}"), oracle.greedy_gaps(text, 8, [(folder, 0.8)] if i else []))
    engine.close()
