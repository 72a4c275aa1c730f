"""The NF4 copy: bitsandbytes' own values, made once, whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from bitsandbytes.nn import Linear4bit
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from loramux_server.core.errors import Code, Error
from loramux_server.model.base import nf4, quantize, quiet, tokenizer_files
from loramux_server.model.base.fingerprint import fingerprint
from loramux_server.model.base.load import linear_modules, load_base
from loramux_server.model.base.nf4_copy import Nf4Copy
from loramux_server.model.base.quantize import prepare_base
from loramux_server.model.base.source import read_marker
from tests.oracle import load_plain
from tests.tiny import ARCHITECTURES, tokenizer, write_model

CPU = torch.device("cpu")


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_linear_but_the_head_is_nf4_of_the_original(arch: str, tmp_path: Path) -> None:
    source = write_model(tmp_path / arch, arch)
    original = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    copy = load_plain(prepare_base(str(source), tmp_path), torch.float32)
    head, left = copy.get_output_embeddings(), []
    for name, module in original.named_modules():
        if type(module) is not torch.nn.Linear:
            continue
        made = copy.get_submodule(name)
        if made is head:
            assert torch.equal(made.weight, module.weight)
            continue
        left.append(name)
        assert isinstance(made, Linear4bit)
        packed, state = quantize_4bit(module.weight.data, blocksize=64, compress_statistics=True, quant_type="nf4")
        ours = dequantize_4bit(made.weight.data, made.weight.quant_state)
        assert torch.equal(ours, dequantize_4bit(packed, state))
        assert (ours - module.weight).norm() < 0.15 * module.weight.norm()
        assert module.bias is None or torch.equal(made.bias, module.bias)
    assert left
    for name, parameter in original.named_parameters():
        if name.rpartition(".")[0] not in left:
            assert torch.equal(copy.get_parameter(name), parameter), name


@pytest.mark.parametrize("shape", [(40, 64), (576, 1536), (1, 64 * 32_767)])
def test_our_values_are_those_of_bitsandbytes_on_a_host(shape: tuple[int, int]) -> None:
    """To the bit, up to the largest weight whose blocks torch sums on one thread. A block of zeros is among them."""
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(4)).to(torch.bfloat16).float()
    weight.view(-1)[64 * 3 : 64 * 4] = 0
    packed, state = quantize_4bit(weight, blocksize=64, compress_statistics=True, quant_type="nf4")
    ours = nf4.quantise(weight, 64, CPU)
    assert torch.equal(ours.data, packed)
    expected, found = state.as_dict(packed=True), ours.quant_state.as_dict(packed=True)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def test_the_copy_of_a_large_weight_does_not_depend_on_the_number_of_threads() -> None:
    """torch splits sums of more values among threads; bitsandbytes' offset is such a sum."""
    weight = torch.randn(2048, 4096, generator=torch.Generator().manual_seed(5))
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 4):
            torch.set_num_threads(threads)
            found.append(nf4.quantise(weight, 64, CPU).quant_state.as_dict(packed=True))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(found[0][name], value) for name, value in other.items())


def test_the_mean_is_taken_on_the_host_in_a_fixed_order() -> None:
    draw = torch.Generator().manual_seed(6)
    for count in (1, 900, 13_824, 32_767):
        values = torch.rand(count, generator=draw)
        assert torch.equal(nf4._mean(values), values.mean())
    large = torch.rand(200_000, generator=draw)
    assert float(nf4._mean(large)) == pytest.approx(float(large.double().mean()), rel=1e-6)


def test_a_device_that_cannot_quantise_leaves_the_rest_to_the_host(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As a GPU that others have filled; here one whose values nobody can read."""
    copy = Nf4Copy(tmp_path, None, lambda done: None)
    copy._device = torch.device("meta")
    weight = torch.randn(4, 128, generator=torch.Generator().manual_seed(0))
    assert torch.equal(copy._quantise(weight).data, nf4.quantise(weight, 64, CPU).data)
    assert copy._device == CPU
    assert "quantised on the CPU" in caplog.text


def test_the_copy_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_model(tmp_path / "m", "llama")
    steps: list[tuple[str, float | None]] = []
    folder = prepare_base(str(source), tmp_path, lambda step, done: steps.append((step, done)))
    assert ("quantising to NF4", 1.0) in steps
    monkeypatch.setattr(quantize, "convert", _never)
    assert prepare_base(str(source), tmp_path) == folder
    made = read_marker(folder)
    assert made["name"] == "m"
    assert made["fingerprint"] == fingerprint(folder)
    assert load_base(folder, CPU, torch.float32).fingerprint == made["fingerprint"]


def test_other_weights_at_the_same_path_are_another_base(tmp_path: Path) -> None:
    first = prepare_base(str(write_model(tmp_path / "m", "llama", seed=1)), tmp_path)
    second = prepare_base(str(write_model(tmp_path / "m", "llama", seed=2)), tmp_path)
    assert first != second
    assert read_marker(first)["fingerprint"] != read_marker(second)["fingerprint"]


def test_fingerprint_is_of_content_not_of_files(tmp_path: Path, tiny_base: Callable[..., Path]) -> None:
    folder = tiny_base("llama")
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    for part, chosen in (("b", names[::2]), ("a", names[1::2])):
        save_file({n: tensors[n] for n in chosen}, tmp_path / f"{part}.safetensors", metadata={"part": part})
    assert fingerprint(tmp_path) == fingerprint(folder)
    tensors[names[0]].view(torch.uint8).view(-1)[0] ^= 1
    save_file(tensors, tmp_path / "a.safetensors")
    (tmp_path / "b.safetensors").unlink()
    assert fingerprint(tmp_path) != fingerprint(folder)


@pytest.mark.parametrize(("failure", "code"), [(errno.ENOSPC, Code.RESOURCE_EXHAUSTED), (errno.EIO, None)])
def test_a_conversion_that_fails_leaves_nothing(
    failure: int, code: Code | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_model(tmp_path / "m", "llama")

    def fail(*_: object) -> None:
        raise OSError(failure, "injected")

    with monkeypatch.context() as patch:
        patch.setattr(tokenizer_files, "write", fail)
        with pytest.raises(Error if code else OSError) as caught:
            prepare_base(str(source), tmp_path / "state")
        if code:
            assert isinstance(caught.value, Error)
            assert caught.value.code == code
    assert {p.suffix for p in (tmp_path / "state" / "base").iterdir()} == {".lock"}
    assert read_marker(prepare_base(str(source), tmp_path / "state"))["name"] == "m"


def test_remains_of_a_killed_conversion_are_replaced(tmp_path: Path) -> None:
    source = write_model(tmp_path / "m", "llama")
    folder = prepare_base(str(source), tmp_path)
    (folder / "loramux.json").unlink()  # as if a foreign hand had made half of it
    draft = folder.with_name(f".{folder.name}.tmp")
    draft.mkdir()
    assert prepare_base(str(source), tmp_path) == folder
    assert read_marker(folder)["name"] == "m"
    assert not draft.exists()


def test_field_c_what_a_killed_conversion_left_goes_at_the_next_start(tmp_path: Path) -> None:
    cache = tmp_path / "base"
    for name in ("other--9.1-0a", "third-0b"):
        (cache / f".{name}.tmp").mkdir(parents=True)
        (cache / f".{name}.tmp" / "model.safetensors").write_bytes(b"half")
    folder = prepare_base(str(write_model(tmp_path / "m", "llama")), tmp_path)
    assert not list(cache.glob(".*.tmp"))
    draft = cache / ".other--9.1-0a.tmp"
    draft.mkdir()
    with (cache / ".other--9.1-0a.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another process converts it now
        prepare_base(str(tmp_path / "m"), tmp_path)
        assert draft.exists()
    prepare_base(str(tmp_path / "m"), tmp_path)  # also where nothing is converted
    assert not draft.exists()
    assert read_marker(folder)["name"] == "m"


def test_field_c_words_of_transformers_go_where_ours_go(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    with quiet.transformers():
        pass
    logging.getLogger("transformers.modeling_utils").warning("some weights are missing")
    assert "some weights are missing" in caplog.text
    assert capsys.readouterr().err == ""


def test_field_c_a_conversion_says_how_long_it_takes(tmp_path: Path) -> None:
    source = write_model(tmp_path / "m", "llama")
    told: list[str] = []
    for _ in range(2):
        prepare_base(str(source), tmp_path, lambda step, done: told.append(step))
    (line,) = [step for step in told if "about" in step]
    assert line == "converting m to NF4, only at its first start: about 1 min"
    assert told.index(line) < told.index(quantize.IMPORTING)


def test_two_at_once_make_one(tmp_path: Path) -> None:
    source = write_model(tmp_path / "m", "llama")
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: prepare_base(str(source), tmp_path), range(2))
    assert first == second
    assert read_marker(first)["fingerprint"] == fingerprint(first)
    assert {p.name for p in first.parent.iterdir()} == {first.name, f".{first.name}.lock"}


def test_rows_that_are_not_whole_blocks_stay_in_16_bits(tmp_path: Path) -> None:
    source = write_model(tmp_path / "m", "llama", intermediate_size=96)
    folder = prepare_base(str(source), tmp_path)
    notes = read_marker(folder)["notes"]
    assert len(notes) == 3
    assert all("down_proj" in n and "16 bits" in n for n in notes)
    plain = load_plain(folder, torch.float32)
    assert type(plain.model.layers[0].mlp.down_proj) is torch.nn.Linear
    assert isinstance(plain.model.layers[0].mlp.up_proj, Linear4bit)
    assert linear_modules(load_base(folder, CPU, torch.float32).model)["model.layers.2.mlp.down_proj"] == (96, 64)


def test_experts_that_are_no_linears_are_noted(tiny_base: Callable[..., Path]) -> None:
    notes = read_marker(tiny_base("mixtral"))["notes"]
    assert any("experts" in note and "16 bits" in note for note in notes)


def test_a_16_bit_model_keeps_its_type(tmp_path: Path) -> None:
    source = write_model(tmp_path / "m", "llama")
    AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16).save_pretrained(source)
    folder = prepare_base(str(source), tmp_path)
    tensors = load_file(folder / "model.safetensors")
    assert tensors["model.embed_tokens.weight"].dtype == torch.bfloat16
    assert AutoConfig.from_pretrained(folder).dtype == torch.bfloat16


def test_an_nf4_model_is_used_as_it_is(tmp_path: Path, tiny_base: Callable[..., Path]) -> None:
    given = tmp_path / "given"
    shutil.copytree(tiny_base("qwen3"), given, ignore=shutil.ignore_patterns("loramux.json"))
    folder = prepare_base(str(given), tmp_path)
    assert (folder / "model.safetensors").resolve() == (given / "model.safetensors").resolve()
    assert not (given / "loramux.json").exists(), "a user's folder is never written to"
    base = load_base(folder, CPU, torch.float32)
    assert base.name == "given"
    assert base.fingerprint == read_marker(tiny_base("qwen3"))["fingerprint"]


@pytest.mark.parametrize(
    "quantization", [{"quant_method": "gptq", "bits": 4}, {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"}]
)
def test_other_quantisations_are_refused(quantization: dict[str, object], tmp_path: Path) -> None:
    source = write_model(tmp_path / "m", "llama")
    config = json.loads((source / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", **quantization}
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(Error) as caught:
        prepare_base(str(source), tmp_path)
    assert caught.value.violations[0].field == "model"
    assert "16-bit" in caught.value.message


def test_what_is_no_text_model_is_refused(tmp_path: Path) -> None:
    source = write_model(tmp_path / "m", "llama")
    (source / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(Error) as caught:
        prepare_base(str(source), tmp_path)
    assert caught.value.violations[0].field == "model"


def test_code_in_a_model_folder_never_runs(tmp_path: Path) -> None:
    source = write_model(tmp_path / "m", "llama")
    config = json.loads((source / "config.json").read_text())
    config |= {"model_type": "custom", "auto_map": {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}}
    (source / "config.json").write_text(json.dumps(config))
    (source / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(Error):
        prepare_base(str(source), tmp_path)
    assert not (tmp_path / "ran").exists()


def test_the_tokenizer_comes_along(tiny_base: Callable[..., Path]) -> None:
    folder = tiny_base("llama")
    copied = AutoTokenizer.from_pretrained(folder)
    messages = [{"role": "user", "content": "Which kettle is red? 12"}]
    assert copied.apply_chat_template(messages, tokenize=False) == tokenizer().apply_chat_template(
        messages, tokenize=False
    )
    assert copied("Which kettle? 12").input_ids == tokenizer()("Which kettle? 12").input_ids
    assert (folder / "tokenizer.json").is_file()
    assert (folder / "chat_template.jinja").is_file()


def test_a_template_inside_the_settings_gets_its_file(tmp_path: Path) -> None:
    source = write_model(tmp_path / "m", "llama")
    (source / "chat_template.jinja").unlink()
    settings = json.loads((source / "tokenizer_config.json").read_text())
    (source / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": "{{ 'hi' }}"}))
    folder = prepare_base(str(source), tmp_path)
    assert (folder / "chat_template.jinja").read_text() == "{{ 'hi' }}"


def test_a_model_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    source = write_model(tmp_path / "m", "llama")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (source / name).unlink()
    with pytest.raises(Error) as caught:
        prepare_base(str(source), tmp_path)
    assert "tokenizer" in caught.value.message


def _never(*_: object) -> None:
    raise AssertionError("converted again")
