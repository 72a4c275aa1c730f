"""A loaded base is what plain transformers loads from the same folder, frozen and in the dtype that was asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file

from loramux_server.core.errors import Code, Error
from loramux_server.model.base.load import LoadedBase, linear_modules, load_base, resolve_device, resolve_dtype
from tests.oracle import Oracle, load_plain
from tests.tiny import ARCHITECTURES

CPU = torch.device("cpu")
IDS = [5, 70, 300, 12, 9, 44, 280, 7] * 5  # longer than the sliding windows


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_logits_are_plain_transformers(
    arch: str, tiny_base: Callable[..., Path], oracle_of: Callable[[Path], Oracle]
) -> None:
    folder = tiny_base(arch)
    base = load_base(folder, CPU, torch.float32, attn_implementation="eager")
    with torch.no_grad():
        ours = base.model(input_ids=torch.tensor([IDS])).logits[0]
    reference = oracle_of(folder).logits(IDS)
    assert torch.equal(ours, reference)
    assert reference.std() > 0.5, "logits too flat to tell right from wrong"


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_linear_modules_are_those_of_peft_all_linear(arch: str, tiny_base: Callable[..., Path]) -> None:
    folder = tiny_base(arch)
    ours = linear_modules(load_base(folder, CPU, torch.float32, attn_implementation="eager").model)
    peft = get_peft_model(load_plain(folder, torch.float32), LoraConfig(target_modules="all-linear"))
    theirs = {
        name.removeprefix("base_model.model."): (module.in_features, module.out_features)
        for name, module in peft.named_modules()
        # PEFT can also adapt the experts and routers of some mixtures, which are bare weights.
        if isinstance(module, LoraLayer) and isinstance(module.get_base_layer(), torch.nn.Linear)
    }
    assert ours == theirs
    assert list(ours) == list(theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_frozen_and_in_one_dtype(dtype: torch.dtype, tiny_base: Callable[..., Path]) -> None:
    base = load_base(tiny_base("qwen2"), CPU, dtype)
    assert not base.model.training
    assert not any(p.requires_grad for p in base.model.parameters())
    floats = {p.dtype for p in base.model.parameters() if p.is_floating_point()}
    assert floats == {dtype}
    assert base.model.get_input_embeddings().weight is base.model.get_output_embeddings().weight, "tied stays tied"
    # Rotary frequencies stay float32: rounding them would turn long prompts wrong.
    assert base.model.model.rotary_emb.inv_freq.dtype == torch.float32
    expected = 10_000.0 ** -(torch.arange(0, 16, 2) / 16)
    assert torch.allclose(base.model.model.rotary_emb.inv_freq, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_nf4_values_are_float32_values_rounded_once(dtype: torch.dtype, tiny_base: Callable[..., Path]) -> None:
    folder = tiny_base("llama")
    exact = _dense(load_base(folder, CPU, torch.float32))
    rounded = _dense(load_base(folder, CPU, dtype))
    assert exact.keys() == rounded.keys()
    assert all(rounded[name].dtype == dtype for name in rounded)
    assert all(torch.equal(exact[name].to(dtype), rounded[name]) for name in exact)


def test_a_forward_leaves_the_weights_alone_and_lets_gradients_through(tiny_base: Callable[..., Path]) -> None:
    folder = tiny_base("llama")
    base = load_base(folder, CPU, torch.bfloat16)
    stored = load_file(folder / "model.safetensors")
    with torch.no_grad():
        base.model(input_ids=torch.tensor([IDS]))
    embedded = base.model.get_input_embeddings()(torch.tensor([IDS])).detach().requires_grad_()
    base.model(inputs_embeds=embedded).logits.float().square().mean().backward()
    assert embedded.grad is not None
    assert embedded.grad.abs().sum() > 0
    for name, module in base.model.named_modules():
        if isinstance(module, Linear4bit):
            assert torch.equal(module.weight.data, stored[f"{name}.weight"])
            assert torch.equal(module.weight.quant_state.absmax, stored[f"{name}.weight.absmax"])


def test_a_broken_copy_says_what_to_delete(tiny_base: Callable[..., Path], tmp_path: Path) -> None:
    folder = tmp_path / "broken"
    folder.mkdir()
    for file in tiny_base("llama").iterdir():
        content = file.read_bytes()
        (folder / file.name).write_bytes(content[: len(content) // 2] if file.suffix == ".safetensors" else content)
    with pytest.raises(Error) as caught:
        load_base(folder, CPU, torch.float32)
    assert caught.value.code == Code.DATA_LOSS
    assert str(folder) in caught.value.message


def test_what_transformers_refuses_is_bad_input(tiny_base: Callable[..., Path]) -> None:
    with pytest.raises(Error) as caught:
        load_base(tiny_base("gemma2"), CPU, torch.float32, attn_implementation="sdpa")  # it has soft-capping
    assert caught.value.violations[0].field == "model"


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Error) as caught:
        load_base(tmp_path, CPU, torch.float32)
    assert caught.value.violations[0].field == "model"


def test_devices_and_dtypes() -> None:
    assert resolve_device("cpu") == CPU
    assert resolve_dtype("float16", CPU) == torch.float16
    assert resolve_dtype("auto", CPU) in (torch.float32, torch.bfloat16)
    for call, field in (
        (lambda: resolve_device("tpu"), "device"),
        (lambda: resolve_device("meta"), "device"),
        (lambda: resolve_dtype("int8", CPU), "dtype"),
    ):
        with pytest.raises(Error) as caught:
            call()
        assert caught.value.violations[0].field == field


@pytest.mark.parametrize(("able", "dtype"), [({}, torch.float32), ({"avx512_bf16": True}, torch.bfloat16)])
def test_auto_dtype_follows_the_processor(
    able: dict[str, bool], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    assert resolve_dtype("auto", CPU) == dtype


@pytest.mark.parametrize(("major", "dtype"), [(7, torch.float16), (8, torch.bfloat16), (9, torch.bfloat16)])
def test_auto_dtype_on_cuda_is_what_the_device_multiplies(
    major: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch emulates bfloat16 on a T4 (7.5), and calls that supported."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(major=major))
    monkeypatch.setattr(torch.cuda, "_check_bf16_tensor_supported", lambda device: True)
    assert resolve_dtype("auto", torch.device("cuda")) == dtype


@pytest.mark.skipif(torch.cuda.is_available(), reason="has CUDA")
def test_cuda_in_vain_is_explained() -> None:
    assert resolve_device("auto") == CPU
    with pytest.raises(Error) as caught:
        resolve_device("cuda")
    assert caught.value.code == Code.FAILED_PRECONDITION


def _dense(base: LoadedBase) -> dict[str, torch.Tensor]:
    return {
        name: dequantize_4bit(module.weight.data, module.weight.quant_state)
        for name, module in base.model.named_modules()
        if isinstance(module, Linear4bit)
    }
