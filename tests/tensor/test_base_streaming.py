"""A conversion reads, quantises and writes a part at a time, and one that was killed goes on where it was."""

from __future__ import annotations

import json
import multiprocessing
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from loramux_server.core.errors import Code, Error
from loramux_server.model.base import nf4, nf4_copy, parts, quantize, shards
from loramux_server.model.base.files import JOURNAL, find_damage
from loramux_server.model.base.fingerprint import stored_tensors
from loramux_server.model.base.load import load_base
from loramux_server.model.base.quantize import prepare_base
from loramux_server.model.base.source import read_marker
from tests.architectures import CASES
from tests.oracle import load_plain
from tests.tensor import conversion_child
from tests.tiny import write_model

CPU = torch.device("cpu")
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["tests.tensor.conversion_child"])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("source") / "m", "llama")


@pytest.fixture(scope="module")
def made(model: Path) -> Path:
    return prepare_base(str(model), model.parent)


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SHARD_BYTES", 40_000)


def run(main: Callable[..., None], *args: object) -> int | None:
    child = _PROCESSES.Process(target=main, args=args)
    child.start()
    child.join(120)
    return child.exitcode


def draft_of(state: Path) -> Path:
    (draft,) = (state / "base").glob(".*.tmp")
    return draft


@pytest.mark.parametrize(
    ("failpoint", "kept"),
    [
        ("base.shard_written", 0),
        ("base.shard_recorded", 1),
        ("base.shards_written", 4),
        ("base.shard_named", 4),
        ("base.checked", 4),
        ("base.marked", 4),
        ("base.converted", 4),
    ],
)
def test_a_conversion_that_was_killed_goes_on_where_it_was(
    failpoint: str,
    kept: int,
    model: Path,
    made: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    small_shards: None,
) -> None:
    assert run(conversion_child.main, model, tmp_path, failpoint) == -9
    done: list[float] = []
    begun: list[int] = []
    begin = nf4_copy.Nf4Copy.begin

    def note(self: nf4_copy.Nf4Copy, *args: Any) -> int:
        begun.append(begin(self, *args))
        return begun[-1]

    monkeypatch.setattr(nf4_copy.Nf4Copy, "begin", note)
    folder = prepare_base(str(model), tmp_path, lambda step, fraction: done.append(fraction or 0))
    if failpoint == "base.converted":
        assert not begun
    else:
        assert begun == [kept if kept < 4 else PARTS]
    assert read_marker(folder)["fingerprint"] == read_marker(made)["fingerprint"]
    assert find_damage(folder) == ""
    assert not list((tmp_path / "base").glob(".*.tmp"))


PARTS = 6
"""Of the tiny model: three layers, embedding, norm and head."""


def test_a_file_that_was_damaged_since_is_written_again(
    model: Path, made: Path, tmp_path: Path, small_shards: None
) -> None:
    assert run(conversion_child.main, model, tmp_path, "base.shards_written") == -9
    draft = draft_of(tmp_path)
    second = draft / "model-00002.safetensors"
    second.write_bytes(second.read_bytes()[:-1] + b"x")
    writer = shards.ShardWriter(draft, json.loads((draft / JOURNAL).read_text())["maker"])
    assert writer.parts_done == 1
    assert [path.name for path in sorted(draft.glob("*.safetensors"))] == ["model-00001.safetensors"]
    assert read_marker(prepare_base(str(model), tmp_path))["fingerprint"] == read_marker(made)["fingerprint"]


def test_files_that_another_version_wrote_are_not_kept(model: Path, tmp_path: Path, small_shards: None) -> None:
    assert run(conversion_child.main, model, tmp_path, "base.shards_written") == -9
    assert shards.ShardWriter(draft_of(tmp_path), {"transformers": "another"}).parts_done == 0
    assert {path.name for path in draft_of(tmp_path).iterdir()} == {JOURNAL}


def test_finished_files_wait_for_a_week(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = write_model(tmp_path / "other", "qwen2")
    assert run(conversion_child.main, model, tmp_path, "base.shards_written") == -9
    prepare_base(str(other), tmp_path)
    assert (draft_of(tmp_path) / JOURNAL).exists()
    monkeypatch.setattr(quantize, "KEPT_DAYS", 0)
    prepare_base(str(other), tmp_path)
    assert not list((tmp_path / "base").glob(".*.tmp"))


def test_a_copy_of_several_files_is_one_that_transformers_reads(
    model: Path, made: Path, tmp_path: Path, small_shards: None
) -> None:
    folder = prepare_base(str(model), tmp_path)
    names = [path.name for path in sorted(folder.glob("*.safetensors"))]
    assert names == [f"model-{i:05}-of-00004.safetensors" for i in range(1, 5)]
    assert read_marker(folder)["fingerprint"] == read_marker(made)["fingerprint"]
    ids = torch.tensor([[5, 70, 300, 12]])
    with torch.no_grad():
        logits = [load_plain(place, torch.float32)(input_ids=ids).logits for place in (folder, made)]
        assert torch.equal(*logits)
    assert load_base(folder, CPU, torch.float32).fingerprint == read_marker(made)["fingerprint"]


@pytest.mark.parametrize(
    "arch",
    [pytest.param(arch, marks=() if arch in ("llama", "mixtral") else pytest.mark.slow) for arch in CASES],
)
def test_the_copy_holds_what_a_model_that_is_loaded_whole_holds(
    arch: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same names and bytes as ``save_pretrained`` writes for the whole model, experts taken apart again."""
    source = write_model(tmp_path / arch, arch)
    folder = prepare_base(str(source), tmp_path)
    whole = AutoModelForCausalLM.from_pretrained(source, dtype="auto", attn_implementation="eager")
    whole.save_pretrained(tmp_path / "whole")
    expected = load_file(tmp_path / "whole" / "model.safetensors")
    found = load_file(folder / "model.safetensors")
    packed = {name.removesuffix(".quant_map") for name in found if name.endswith(".quant_map")}
    assert {name.partition(".weight.")[0] for name in packed}
    assert {name for name in found if not any(name.startswith(f"{p}.") for p in packed)} == set(expected)
    for name, tensor in expected.items():
        if name in packed:
            ours = nf4.quantise(tensor, 64, CPU)
            assert torch.equal(found[name], ours.data)
            for part, value in ours.quant_state.as_dict(packed=True).items():
                assert torch.equal(found[f"{name}.{part}"], value)
        else:
            assert torch.equal(found[name], tensor)


@pytest.mark.parametrize("names", ["both", "head"])
def test_tied_weights_are_kept_once_under_whichever_name_they_come(names: str, tmp_path: Path) -> None:
    source = write_model(tmp_path / "m", "qwen2")
    expected = read_marker(prepare_base(str(source), tmp_path))["fingerprint"]
    tensors = load_file(source / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    if names == "head":
        del tensors["model.embed_tokens.weight"]
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    assert read_marker(prepare_base(str(source), tmp_path))["fingerprint"] == expected


@pytest.mark.parametrize("fault", ["absent", "shape"])
def test_weights_that_do_not_fit_are_refused_before_any_is_written(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_model(tmp_path / "m", "llama")
    tensors = load_file(source / "model.safetensors")
    name = "model.layers.2.mlp.up_proj.weight"
    if fault == "absent":
        del tensors[name]
    else:
        tensors[name] = tensors[name][:-1].clone()
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    monkeypatch.setattr(parts, "_forget", None)  # what is called once a part was taken
    with pytest.raises(Error, match=r"layers\.2\.mlp\.up_proj\.weight") as caught:
        prepare_base(str(source), tmp_path)
    assert caught.value.violations[0].field == "model"


def test_a_disk_that_is_too_small_is_said_before_anything_is_read(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10_000_000))
    steps: list[str] = []
    with pytest.raises(Error, match=r"needs 0\.1 GB more on the disk .* 0\.0 GB are free; free space") as caught:
        prepare_base(str(model), tmp_path, lambda step, done: steps.append(step))
    assert caught.value.code is Code.RESOURCE_EXHAUSTED
    assert "quantising to NF4" not in steps
    assert not list((tmp_path / "base").glob(".*.tmp"))


def test_the_disk_space_asked_for_is_what_the_copy_takes(made: Path) -> None:
    found = stored_tensors([made / "model.safetensors"])
    packed = [name for name in found if f"{name}.absmax" in found]
    weights = sum(2 * found[name].nbytes for name in packed)
    taken = sum(tensor.nbytes for name, tensor in found.items() if name in packed or ".weight." in name)
    tables = sum(t.nbytes for n, t in found.items() if n.endswith(("quant_map", "quant_state.bitsandbytes__nf4")))
    assert taken - tables == pytest.approx(weights * nf4.BYTES, rel=0.01)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_memory_of_a_conversion_does_not_follow_the_size_of_the_model(tmp_path: Path) -> None:
    """A base of 1.1 billion weights, 4.2 GB in float32, in less memory than half of that."""
    source = write_model(
        tmp_path / "m",
        "llama",
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=24,
        num_attention_heads=32,
        num_key_value_heads=4,
    )
    size = sum(path.stat().st_size for path in source.glob("*.safetensors"))
    assert size > 4.0e9
    answer = tmp_path / "peak"
    assert run(conversion_child.peak, source, tmp_path, answer) == 0
    assert int(answer.read_text()) < size / 2
