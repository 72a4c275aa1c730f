"""Adapters that other tools wrote: taken where the tensors say everything, else refused in words that help."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from loramux_server.core.errors import Code, Error
from loramux_server.peft.schema import check_folder
from tests.unit.peft.peft_files import MODULES, Q, V, config, header, make, pack, shapes

UNSLOTH = (
    r"(?:.*?(?:language|text).*?(?:self_attn|attention|attn|mlp|feed_forward|ffn|dense).*?(?:q_proj|v_proj).*?)"
    r"|(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|attention|attn|mlp)\.(?:(?:q_proj|v_proj)))"
)
MS_SWIFT = r"^(model(?=\.).*\.(q_proj|v_proj))$"


def refused(folder: Path) -> Error:
    with pytest.raises(Error) as caught:
        check_folder(folder, MODULES)
    return caught.value


def renamed(change: Any) -> bytes:
    return pack(header({change(key): shape for key, shape in shapes().items()}))


@pytest.mark.parametrize("pattern", [UNSLOTH, MS_SWIFT, "q_proj|v_proj", "q_proj", "(a+)+$", "("])
def test_field_24_a_pattern_of_modules_is_never_run(tmp_path: Path, pattern: str) -> None:
    """The tensors name the modules; even what is no regular expression at all does no harm."""
    found = check_folder(make(tmp_path, config(target_modules=pattern, layers_to_transform=[7])), MODULES)
    assert [m.name for m in found.modules] == sorted(MODULES)
    assert found.lora.target_modules == tuple(sorted(MODULES))
    assert found.lora.targets(list(MODULES)) == list(MODULES)


def test_field_24_a_pattern_that_would_backtrack_costs_nothing(tmp_path: Path) -> None:
    folder = make(tmp_path, config(target_modules="(a|a)*" * 50_000 + "$", rank_pattern={"(a+)+$": 2}))
    started = time.perf_counter()
    check_folder(folder, MODULES)
    assert time.perf_counter() - started < 1


def test_field_24_ranks_by_pattern_are_those_of_the_tensors(tmp_path: Path) -> None:
    """As ms-swift and Axolotl write them: keys that are regular expressions."""
    own = {**shapes(), **shapes({Q: MODULES[Q]}, rank=4)}
    folder = make(tmp_path, config(rank_pattern={r".*\.0\..*q_proj": 4}), pack(header(own)))
    found = {m.name: (m.rank, m.scaling) for m in check_folder(folder, MODULES).modules}
    assert found[Q] == (4, 4 / 4)
    assert found[V] == (2, 4 / 2)


def test_field_24_a_rank_by_pattern_is_bounded_too(tmp_path: Path) -> None:
    own = {**shapes(), **shapes({Q: MODULES[Q]}, rank=5)}
    folder = make(tmp_path, config(rank_pattern={r".*q_proj": 4}), pack(header(own)))
    with pytest.raises(Error, match="rank 5"):
        check_folder(folder, MODULES, max_rank=4)


def test_field_24_an_alpha_by_pattern_is_refused_by_name(tmp_path: Path) -> None:
    """Nothing but the pattern says what it means."""
    error = refused(make(tmp_path, config(target_modules=MS_SWIFT, alpha_pattern={".*q_proj": 8})))
    assert [v.field for v in error.violations] == ["alpha_pattern['.*q_proj']"]
    assert "never run" in error.violations[0].description
    found = check_folder(make(tmp_path / "plain", config(alpha_pattern={"q_proj": 8})), MODULES)
    assert {m.scaling for m in found.modules if m.name.endswith("q_proj")} == {4.0}


@pytest.mark.parametrize("wrapper", ["_checkpoint_wrapped_module", "_orig_mod", "_fsdp_wrapped_module", "module"])
def test_field_25_parts_of_wrappers_are_stripped(tmp_path: Path, wrapper: str) -> None:
    for change in (
        lambda key: key.replace(".self_attn.", f".{wrapper}.self_attn."),
        lambda key: key.replace("base_model.model.", f"base_model.model.{wrapper}."),
    ):
        found = check_folder(make(tmp_path, config(), renamed(change)), MODULES)
        assert [m.name for m in found.modules] == sorted(MODULES)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("base_model.model.language_model.model.layers", "base_model.model.model.layers"),  # a vision-language model's
        ("base_model.model.model.language_model.layers", "base_model.model.model.layers"),
        ("base_model.model.layers", "base_model.model.model.layers"),  # the text class without its head
    ],
)
def test_field_25_only_the_prefix_differs(tmp_path: Path, theirs: str, ours: str) -> None:
    weights = renamed(lambda key: key.replace("base_model.model.model.layers", theirs))
    error = refused(make(tmp_path, config(), weights))
    assert (error.code, error.reason) == (Code.FAILED_PRECONDITION, "ADAPTER_FOR_OTHER_BASE")
    assert "only the prefix of its modules differs" in error.message
    assert theirs.removesuffix("layers") + "*" in error.message
    assert ours.removesuffix("layers") + "*" in error.message


def test_field_25_another_architecture_is_another_base(tmp_path: Path) -> None:
    error = refused(make(tmp_path, config(), renamed(lambda key: key.replace(".layers.", ".layers.9"))))
    assert error.reason == "ADAPTER_FOR_OTHER_BASE"
    assert "prefix" not in error.message


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"model.layers.0.self_attn.q_proj.lora_a": [8, 2], "model.layers.0.self_attn.q_proj.lora_b": [2, 8]}, "MLX"),
        ({"layers.0.attention.wq.lora_A.weight": [2, 8], "layers.0.attention.wq.lora_B.weight": [8, 2]},
         "mistral-finetune"),
        ({"base_model.model.layers.0.attention.wq.lora_A.weight": [2, 8]}, "Meta's own checkpoints"),
        ({"lora_unet_down_blocks_0.lora_down.weight": [2, 8]}, "no language model"),
        ({f"base_model.model.{Q}.lora_A.weight": [2, 8], f"base_model.model.{Q}.lora_magnitude_vector": [8]}, "DoRA"),
        ({f"base_model.model.{Q}.lora_A.weight": [2, 8],
          f"base_model.model.{Q}.lora_magnitude_vector.default.weight": [8]}, "use_dora=False"),
        ({f"{Q}.lora_A.weight": [2, 8]}, "save_pretrained"),
    ],
)  # fmt: skip
def test_field_25_the_tool_and_the_conversion_are_named(tmp_path: Path, keys: dict[str, list[int]], words: str) -> None:
    head: dict[str, Any] = {}
    at = 0
    for key, shape in keys.items():
        size = 4 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        head[key] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    error = refused(make(tmp_path, config(), pack(head)))
    assert error.code is Code.INVALID_ARGUMENT
    assert words in error.message


@pytest.mark.parametrize(
    "metadata", ['{"x": "\\ud800"}', '{"\\udfff": "x"}', '{"format": "pt", "x": "a\\ud83db"}', '{"x": 1}', "[]"]
)
def test_field_16_a_header_that_safetensors_cannot_open_is_refused(tmp_path: Path, metadata: str) -> None:
    text = pack(header(shapes()))
    length = int.from_bytes(text[:8], "little")
    old, data = text[8 : 8 + length].decode(), text[8 + length :]
    head = old.replace('{"format": "pt"}', metadata).encode()
    error = refused(make(tmp_path, config(), len(head).to_bytes(8, "little") + head + data))
    assert error.code is Code.INVALID_ARGUMENT


@pytest.mark.parametrize("field", ["base_model_name_or_path", "revision", "peft_version", "some_new_setting"])
def test_field_16_a_lone_surrogate_in_the_config_is_refused(tmp_path: Path, field: str) -> None:
    error = refused(make(tmp_path, f'{{"peft_type": "LORA", "r": 2, "lora_alpha": 4, "{field}": "\\ud800"}}'.encode()))
    assert (error.code, error.reason) == (Code.INVALID_ARGUMENT, "BAD_JSON")
