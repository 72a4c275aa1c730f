"""Reading GGUF: what transformers reads, without its detours, and the original's tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf as gguf_format
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from loramux_server.model.base import gguf
from loramux_server.model.base.load import load_base
from loramux_server.model.base.parts import Part, loading_in_parts
from loramux_server.model.base.quantize import prepare_base
from tests.tiny import CHATML, tokenizer

HIDDEN, HEADS, KV_HEADS, FFN, LAYERS = 64, 4, 2, 128, 2


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of two layers, Q8_0 and F32, as llama.cpp's converter writes it."""
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    writer = gguf_format.GGUFWriter(path, "llama")
    writer.add_name("Tiny")
    writer.add_context_length(256)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    ours = tokenizer()
    tokens = [t for t, _ in sorted(ours.get_vocab().items(), key=lambda item: item[1])]
    model: Any = json.loads(ours.backend_tokenizer.to_str())["model"]
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * 3 + [1] * (len(tokens) - 3))
    writer.add_token_merges([" ".join(m) for m in model["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHATML)
    draw = np.random.default_rng(0)
    kv = HIDDEN // HEADS * KV_HEADS
    shapes = {"attn_q": (HIDDEN, HIDDEN), "attn_k": (kv, HIDDEN), "attn_v": (kv, HIDDEN)}
    shapes |= {"attn_output": (HIDDEN, HIDDEN), "ffn_gate": (FFN, HIDDEN), "ffn_up": (FFN, HIDDEN)}
    shapes |= {"ffn_down": (HIDDEN, FFN)}

    def matrix(name: str, shape: tuple[int, int]) -> None:
        packed = gguf_format.quantize(
            0.15 * draw.standard_normal(shape, dtype=np.float32), gguf_format.GGMLQuantizationType.Q8_0
        )
        writer.add_tensor(name, packed, raw_dtype=gguf_format.GGMLQuantizationType.Q8_0)

    matrix("token_embd.weight", (len(tokens), HIDDEN))
    for i in range(LAYERS):
        for name, shape in shapes.items():
            matrix(f"blk.{i}.{name}.weight", shape)
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{i}.{name}.weight", 1 + 0.1 * draw.standard_normal(HIDDEN, dtype=np.float32))
    writer.add_tensor("output_norm.weight", np.ones(HIDDEN, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


class Collected:
    """Receives the parts of a file and keeps them."""

    def __init__(self) -> None:
        self.tensors: dict[str, torch.Tensor] = {}
        self.sizes: list[int] = []

    def begin(self, model: Any, parts: list[Part]) -> int:
        assert all(p.is_meta for p in model.parameters())
        return 0

    def take(self, model: Any, part: Part, loaded: dict[str, torch.Tensor]) -> None:
        self.tensors |= loaded
        self.sizes.append(sum(tensor.nbytes for tensor in loaded.values()))


def read_whole(file: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)


def test_weights_are_those_that_transformers_reads_a_layer_at_a_time(file: Path) -> None:
    collected, reading = Collected(), gguf.GGUFFile(file)
    with loading_in_parts(collected, "tiny", reading.parts):
        ours = reading.read_model()
    theirs = dict(read_whole(file).named_parameters())
    assert collected.tensors.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in collected.tensors.items())
    assert ours.config.num_key_value_heads == KV_HEADS
    assert len(collected.sizes) == LAYERS + 2  # the embedding and the norm besides
    assert all(p.is_meta for p in ours.parameters())


def test_a_conversion_tells_how_far_it_is(file: Path, tmp_path: Path) -> None:
    done: list[float] = []
    prepare_base(str(file), tmp_path, lambda step, fraction: done.append(fraction) if fraction is not None else None)
    assert done[-1] == pytest.approx(1)
    assert done == sorted(done)
    assert len(done) > LAYERS


def test_it_can_be_converted_and_served(file: Path, tmp_path: Path) -> None:
    base = load_base(prepare_base(str(file), tmp_path), torch.device("cpu"), torch.float32)
    assert base.name == "tiny"
    assert base.model.generation_config.eos_token_id == 2
    dense = read_whole(file)
    ids = torch.tensor([[5, 70, 300, 12, 9]])
    with torch.no_grad():
        ours, full = base.model(input_ids=ids).logits, dense(input_ids=ids).logits
    # NF4 costs some precision; wrongly permuted heads or a wrong head count would cost the likeness.
    assert torch.nn.functional.cosine_similarity(ours.flatten(), full.flatten(), dim=0) > 0.9


@pytest.mark.parametrize("text", ["The red kettle", "in 1987 or 12", "three   spaces   42", "<|im_start|>user\nhi"])
def test_tokens_are_the_originals(text: str, file: Path) -> None:
    read = gguf.read_tokenizer(file)
    ids = read(text).input_ids
    assert read.decode(ids) == text
    if not any(c.isdigit() for c in text):
        assert ids == tokenizer()(text).input_ids
    else:  # the original of this kind splits numbers into digits, before it looks at spaces
        digits = [read.convert_tokens_to_ids(c) for c in text if c.isdigit()]
        assert [i for i in ids if i in digits] == digits
    assert read.chat_template == CHATML
