"""Adapter folders from strangers: what is taken, and the answer that everything else gets."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from loramux_server.core.errors import Code, Error
from loramux_server.peft.lora_config import LoraConfig
from loramux_server.peft.schema import FINGERPRINT_KEY, check_folder
from tests.examples import examples
from tests.unit.peft.peft_files import MODULES, Q, V, config, header, make, pack, shapes


def refused(folder: Path, **options: Any) -> Error:
    with pytest.raises(Error) as caught:
        check_folder(folder, MODULES, **options)
    assert str(folder) not in caught.value.message  # no path of ours in what a client reads
    return caught.value


def test_a_good_folder_is_read(tmp_path: Path) -> None:
    found = check_folder(make(tmp_path), MODULES)
    assert found.rank == 2
    assert [m.name for m in found.modules] == sorted(MODULES)
    assert {m.scaling for m in found.modules} == {2.0}
    assert found.target_modules == ("q_proj", "v_proj")
    assert found.layers is None
    assert found.size_bytes == 4 * 2 * (2 * (8 + 8) + 2 * (8 + 4))


@pytest.mark.parametrize(
    "changes",
    [
        {"auto_mapping": None, "revision": None, "modules_to_save": None, "megatron_core": "megatron.core"},
        {"auto_mapping": {"base_model_class": "LlamaForCausalLM",
                          "parent_library": "transformers.models.llama.modeling_llama", "unsloth_fixed": True}},
        {"loftq_config": {}, "layer_replication": None, "use_dora": False, "trainable_token_indices": None},
        {"task_type": None, "bias": "none", "lora_dropout": 0.05, "inference_mode": True, "peft_version": "0.21.2"},
        {"init_lora_weights": "gaussian", "eva_config": {"rho": 2.0}, "qalora_group_size": 16},
        {"target_modules": "all-linear"},
        {"base_model_name_or_path": "/etc/passwd"},
        {"some_new_setting": None},
    ],
)  # fmt: skip
def test_keys_that_tools_write_are_taken(tmp_path: Path, changes: dict[str, Any]) -> None:
    check_folder(make(tmp_path, config(**changes)), MODULES)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"peft_type": "IA3"}, "peft_type"),
        ({"peft_type": ...}, "peft_type"),
        ({"use_dora": True}, "use_dora"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"auto_mapping": {"parent_library": "os", "base_model_class": "system"}}, "auto_mapping"),
        ({"auto_mapping": {"parent_library": "transformers_evil", "base_model_class": "X"}}, "auto_mapping"),
        ({"auto_mapping": "x"}, "auto_mapping"),
        ({"megatron_config": {"a": 1}}, "megatron_config"),
        ({"megatron_core": "os"}, "megatron_core"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"exclude_modules": ["q_proj"]}, "exclude_modules"),
        ({"target_parameters": ["w"]}, "target_parameters"),
        ({"tokenizer_kwargs": {"trust_remote_code": True}}, "tokenizer_kwargs"),
        ({"trust_remote_code": True}, "trust_remote_code"),
        ({"bias": "all"}, "bias"),
        ({"lora_bias": True}, "lora_bias"),
        ({"task_type": "SEQ_CLS"}, "task_type"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights"),
        ({"loftq_config": {"loftq_bits": 4}}, "loftq_config"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"r": 0}, "r"),
        ({"r": -1}, "r"),
        ({"r": 257}, "r"),
        ({"r": True}, "r"),
        ({"r": "8"}, "r"),
        ({"r": ...}, "r"),
        ({"lora_alpha": float("nan")}, "lora_alpha"),
        ({"lora_alpha": float("inf")}, "lora_alpha"),
        ({"lora_alpha": 1e30}, "lora_alpha"),
        ({"lora_alpha": 10**400}, "lora_alpha"),
        ({"lora_alpha": "16"}, "lora_alpha"),
        ({"lora_alpha": 0}, "lora_alpha"),
        ({"lora_alpha": ...}, "lora_alpha"),
        ({"use_rslora": "yes"}, "use_rslora"),
        ({"rank_pattern": {"q_proj": 257}}, "rank_pattern[q_proj]"),
        ({"rank_pattern": {"q_.*": 257}}, "rank_pattern['q_.*']"),
        ({"alpha_pattern": {"q_.*": 2}}, "alpha_pattern['q_.*']"),
        ({"rank_pattern": ["q_proj"]}, "rank_pattern"),
        ({"alpha_pattern": {"q_proj": float("inf")}}, "alpha_pattern[q_proj]"),
        ({"target_modules": ""}, "target_modules"),
        ({"target_modules": ["(a+)+$"]}, "target_modules[0]"),
        ({"target_modules": ["../q_proj"]}, "target_modules[0]"),
        ({"target_modules": [1]}, "target_modules[0]"),
        ({"target_modules": []}, "target_modules"),
        ({"target_modules": None}, "target_modules"),
        ({"layers_to_transform": [-1]}, "layers_to_transform"),
        ({"layers_to_transform": "0"}, "layers_to_transform"),
        ({"layers_pattern": "(a+)+"}, "layers_pattern[0]"),
        ({"layers_pattern": "a.b"}, "layers_pattern"),
    ],
)  # fmt: skip
def test_bad_settings_are_refused_by_name(tmp_path: Path, changes: dict[str, Any], field: str) -> None:
    error = refused(make(tmp_path, config(**changes)))
    assert error.code is Code.INVALID_ARGUMENT
    assert field in [v.field for v in error.violations]


def test_all_bad_settings_are_told_at_once(tmp_path: Path) -> None:
    error = refused(make(tmp_path, config(r=0, lora_alpha="x", use_dora=True)))
    assert {v.field for v in error.violations} == {"r", "lora_alpha", "use_dora"}


def test_a_pattern_that_would_backtrack_is_refused_at_once(tmp_path: Path) -> None:
    folder = make(tmp_path, config(target_modules=["(a+)+$", "a" * 10_000 + "!"], rank_pattern={"(a|a)*$": 2}))
    started = time.perf_counter()
    refused(folder)
    assert time.perf_counter() - started < 0.1


@pytest.mark.parametrize(
    "text",
    [b"", b"[]", b"{", b'{"r": 1, "r": 2}', b"[" * 200_000, b'{"r":' * 100_000, b"\xff{}", b"1" * 5000, b"null"],
)
def test_a_config_that_is_no_json_object(tmp_path: Path, text: bytes) -> None:
    assert refused(make(tmp_path, text)).code is Code.INVALID_ARGUMENT


def test_a_config_of_two_megabytes(tmp_path: Path) -> None:
    assert refused(make(tmp_path, b" " * (2 << 20))).reason == "FILE_TOO_LARGE"


def _length(n: int) -> bytes:
    return n.to_bytes(8, "little")


def _with(key: str, **changes: Any) -> bytes:
    head = header(shapes())
    head[key] = {**head[key], **changes}
    data = bytes(max(v["data_offsets"][1] for k, v in header(shapes()).items() if k != "__metadata__"))
    return pack(head, data)


A = f"base_model.model.{Q}.lora_A.weight"
GOOD = pack(header(shapes()))


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        (b"", "too short"),
        (b"1234567", "too short"),
        (b"PK\x03\x04" + bytes(100), "no safetensors"),
        (b"\x80\x04\x95pickle" + bytes(100), "no safetensors"),
        (b"<!DOCTYPE html><html>", "no safetensors"),
        (_length(2**63) + b"{}", "header is larger"),
        (_length(200 << 20) + b"{}", "header is larger"),
        (_length(100) + b"{}", "cut off"),
        (_length(0), "cut off"),
        (pack(b"[]"), "not a JSON object"),
        (pack(b"{nonsense}"), "valid JSON"),
        (pack(b'{"a":' * 100_000), "nested"),
        (pack(b"{" + b'"a":1,' * 2 + b'"b":1}'), "twice"),
        (pack(b"{}"), "no tensors"),
        (pack({"__metadata__": {"a": 1}}), "metadata"),
        (pack({"__metadata__": [], A: 1}), "metadata"),
        (pack({A: 1}, b""), "must have dtype"),
        (_with(A, extra=1), "must have dtype"),
        (_with(A, dtype="F64"), "dtype 'F64'"),
        (_with(A, dtype="I32"), "dtype"),
        (_with(A, dtype="F8_E4M3"), "dtype"),
        (_with(A, dtype=["F32"]), "dtype"),
        (_with(A, shape=[-2, 8]), "two dimensions"),
        (_with(A, shape=[2, 8, 1]), "two dimensions"),
        (_with(A, shape=[0, 8]), "two dimensions"),
        (_with(A, shape=[True, 16]), "two dimensions"),
        (_with(A, shape=[10**18, 8]), "two dimensions"),
        (_with(A, shape=[2**39, 2**39]), "needs"),
        (_with(A, shape=[2.0, 8]), "two dimensions"),
        (_with(A, shape=[4, 8]), "needs 128 bytes"),
        (_with(A, data_offsets=[0, 10**15]), "outside"),
        (_with(A, data_offsets=[64, 0]), "outside"),
        (_with(A, data_offsets=[-64, 0]), "outside"),
        (_with(A, data_offsets=[64, 128]), "overlap"),
        (GOOD + b"tail", "belong to no tensor"),
        (GOOD[:-4], "outside"),
    ],
)
def test_damaged_weights(tmp_path: Path, weights: bytes, words: str) -> None:
    error = refused(make(tmp_path, weights=weights))
    assert error.code is Code.INVALID_ARGUMENT
    assert words in error.message


def test_three_hundred_thousand_tensors_cost_nothing(tmp_path: Path) -> None:
    entries = ",".join(f'"t{i}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for i in range(300_000))
    folder = make(tmp_path, weights=pack(f"{{{entries}}}".encode(), b""))
    started = time.perf_counter()
    assert "header is larger" in refused(folder).message
    assert time.perf_counter() - started < 0.1


def test_more_tensors_than_the_base_could_use(tmp_path: Path) -> None:
    tensors = {f"base_model.model.m{i}.lora_A.weight": [2, 8] for i in range(4 * len(MODULES) + 1)}
    assert "more than 16" in refused(make(tmp_path, weights=pack(header(tensors)))).message


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({A: [3, 8]}, "shape [3, 8], expected [2, 8]"),
        ({A: [2, 16]}, "shape [2, 16], expected [2, 8]"),
        ({f"base_model.model.{V}.lora_B.weight": [5, 2]}, "shape [5, 2], expected [4, 2]"),
        ({f"base_model.model.{Q}.lora_magnitude_vector": [1, 8]}, "DoRA"),
        ({"base_model.model.model.embed_tokens.lora_embedding_A": [2, 8]}, "embedding"),
        ({"base_model.model.lm_head.weight": [8, 8]}, "full weight"),
        ({"model.layers.0.self_attn.q_proj.lora_A.weight": [2, 8]}, "no name of the form"),
        ({"base_model.model.../x.lora_A.weight": [2, 8]}, "not a linear layer"),
        ({f"base_model.model.{Q}.lora_A.default.weight": [2, 8]}, "lora_A twice"),
    ],
)
def test_tensors_that_do_not_fit(tmp_path: Path, changed: dict[str, list[int]], words: str) -> None:
    error = refused(make(tmp_path, weights=pack(header({**shapes(), **changed}))))
    assert error.code is Code.INVALID_ARGUMENT
    assert words in error.message


def test_half_a_pair(tmp_path: Path) -> None:
    tensors = shapes()
    del tensors[f"base_model.model.{V}.lora_B.weight"]
    assert f"module {V} has no lora_B" in refused(make(tmp_path, weights=pack(header(tensors)))).message


@pytest.mark.parametrize("other", [dict.fromkeys(MODULES, (16, 16)), {f"gpt.h.{i}.attn": (8, 8) for i in range(4)}])
def test_an_adapter_for_another_base(tmp_path: Path, other: dict[str, tuple[int, int]]) -> None:
    error = refused(make(tmp_path, weights=pack(header(shapes(other)))))
    assert (error.code, error.reason) == (Code.FAILED_PRECONDITION, "ADAPTER_FOR_OTHER_BASE")


def test_the_fingerprint_decides_between_bases_of_one_shape(tmp_path: Path) -> None:
    head = header(shapes())
    head["__metadata__"][FINGERPRINT_KEY] = "abc"
    folder = make(tmp_path, weights=pack(head))
    check_folder(folder, MODULES, "abc")
    check_folder(folder, MODULES)
    assert refused(folder, base_fingerprint="def").code is Code.FAILED_PRECONDITION


def test_names_with_the_adapter_inside(tmp_path: Path) -> None:
    tensors = {k.replace(".weight", ".default.weight"): v for k, v in shapes().items()}
    assert len(check_folder(make(tmp_path, weights=pack(header(tensors))), MODULES).modules) == 4


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"target_modules": ["q_proj"]}, "do not name"),
        ({"layers_to_transform": [0]}, "do not name"),
        ({"layers_to_transform": 0, "layers_pattern": "blocks"}, "do not name"),
    ],
)
def test_weights_that_the_config_does_not_name(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    assert words in refused(make(tmp_path, config(**changes))).message


def test_modules_that_the_weights_lack(tmp_path: Path) -> None:
    tensors = shapes({Q: MODULES[Q]})
    assert "no tensors for module" in refused(make(tmp_path, weights=pack(header(tensors)))).message


@pytest.mark.parametrize("own", ["patterns", "layers"])
def test_field_01_the_work_of_a_config_grows_with_keys_and_modules_alone(own: str) -> None:
    def work(size: int) -> int:
        names = [f"model.layers.{i}.self_attn.q_proj" for i in range(size)]
        config = LoraConfig(
            rank=2,
            alpha=4.0,
            target_modules=tuple(names),
            rank_pattern=tuple((f"{name}.x", 3) for name in names),
            alpha_pattern=tuple((f"^{name}.x", 3.0) for name in names),
        )
        if own == "layers":
            pattern = tuple(f"p{i}" for i in range(size))
            config = replace(config, layers=tuple(range(size)), layers_pattern=pattern, target_modules=("q_proj",))
        steps = 0

        def count(frame: FrameType, event: str, arg: object) -> Any:
            nonlocal steps
            steps += 1
            return count

        sys.settrace(count)
        try:
            config.targets(names)
            assert len(list(config.scales(names))) == size
        finally:
            sys.settrace(None)
        return steps

    assert work(200) < 5 * work(50)


def test_layers_and_patterns_pick_ranks_and_scaling(tmp_path: Path) -> None:
    first = {k: v for k, v in MODULES.items() if ".0." in k}
    tensors = shapes(first)
    tensors[A], tensors[A.replace("lora_A", "lora_B")] = [4, 8], [8, 4]
    conf = config(
        layers_to_transform=[0],
        layers_pattern=["layers"],
        rank_pattern={r"^model\.layers\.0\.self_attn\.q_proj": 4, "q_proj": 9},
        alpha_pattern={"v_proj": 3},
        use_rslora=True,
    )
    found = check_folder(make(tmp_path, conf, pack(header(tensors))), MODULES)
    by_name = {m.name: m for m in found.modules}
    assert by_name.keys() == first.keys()
    assert by_name[Q].rank == 4
    assert by_name[Q].scaling == 4 / 2
    assert by_name["model.layers.0.self_attn.v_proj"].scaling == 3 / 2**0.5
    assert found.rank == 4
    assert found.layers == (0,)


def _symlink(path: Path) -> None:
    target = path.with_name("elsewhere")
    path.rename(target)
    path.symlink_to(target)


def _hard_link(path: Path) -> None:
    os.link(path, path.with_name("second-name"))


def _fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("spoil", [_symlink, _hard_link, _fifo, _folder, _device])
@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_only_regular_files_of_their_own(tmp_path: Path, name: str, spoil: Callable[[Path], None]) -> None:
    folder = make(tmp_path)
    spoil(folder / name)
    error = refused(folder)
    assert (error.code, error.reason) == (Code.INVALID_ARGUMENT, "NOT_A_REGULAR_FILE")


def test_hard_links_are_fine_in_our_own_folders(tmp_path: Path) -> None:
    folder = make(tmp_path)
    _hard_link(folder / "adapter_model.safetensors")
    check_folder(folder, MODULES, allow_hard_links=True)


def test_a_pickle_is_never_opened(tmp_path: Path) -> None:
    folder = make(tmp_path)
    (folder / "adapter_model.safetensors").unlink()
    os.mkfifo(folder / "adapter_model.bin")  # opening it would block for ever
    assert "never opened" in refused(folder).message


def test_missing_files(tmp_path: Path) -> None:
    assert refused(tmp_path / "nowhere").reason == "FILE_MISSING"
    folder = make(tmp_path / "a")
    (folder / "adapter_config.json").unlink()
    assert refused(folder).reason == "FILE_MISSING"


@examples(150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_damage_escapes_as_another_error(tmp_path: Path, data: st.DataObject) -> None:
    """Whatever bytes change, the answer is the same adapter or an Error."""
    which = data.draw(st.sampled_from(["adapter_config.json", "adapter_model.safetensors"]))
    good = json.dumps(config()).encode() if which.endswith("json") else GOOD
    at = data.draw(st.integers(0, len(good) - 1))
    cut = data.draw(st.integers(0, 8))
    bad = good[:at] + data.draw(st.binary(max_size=12)) + good[at + cut :]
    folder = make(tmp_path)
    (folder / which).write_bytes(bad)
    with contextlib.suppress(Error):
        assert check_folder(folder, MODULES).modules


def test_the_check_needs_no_torch() -> None:
    code = "import sys, loramux_server.peft.schema; print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
