"""Reading a GGUF file through transformers: dequantised weights, and a tokenizer that splits as the original does."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core.errors import invalid_field

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def read_model(path: Path, progress: Callable[[float], None]) -> PreTrainedModel:
    """The model of a GGUF file in float32 on the CPU, as a plain transformers model without any trace of GGUF."""
    import torch
    import transformers

    # Newer versions may keep the blocks packed unless told otherwise.
    kept_packed = hasattr(transformers, "GgufConfig")
    options = {"quantization_config": transformers.GgufConfig(dequantize=True)} if kept_packed else {}
    with _reading_once(progress):
        try:
            model: PreTrainedModel = transformers.AutoModelForCausalLM.from_pretrained(
                str(path.parent), gguf_file=path.name, dtype=torch.float32, trust_remote_code=False, **options
            )
        except (ValueError, KeyError, OSError, NotImplementedError) as error:
            raise invalid_field("model", f"transformers cannot read {path.name}: {_first_line(error)}") from error
    # transformers refuses to save a model that carries these marks.
    for owner, mark in ((model, "hf_quantizer"), (model.config, "quantization_config")):
        if hasattr(owner, mark):
            delattr(owner, mark)
    model.config._name_or_path = ""
    return model


def read_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a GGUF file."""
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    with _reading_once(lambda _: None):
        tokenizer: Any = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name, trust_remote_code=False)
        split = _field(path, "tokenizer.ggml.pre")
    if split == "smollm":
        # transformers leaves out the step that splits numbers into digits; without it runs of spaces before a digit
        # are cut differently from what the model was trained on.
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    return tokenizer


def _field(path: Path, name: str) -> object:
    import gguf

    found = gguf.GGUFReader(path).fields.get(name)
    return found.contents() if found is not None else None


@contextmanager
def _reading_once(progress: Callable[[float], None]) -> Iterator[None]:
    """Keep transformers from parsing the file's header several times and rebuilding its table of names per module.

    That, not dequantising, is most of the time it takes to read a GGUF file. Its progress bar goes to ``progress``.
    """
    import gguf
    from transformers import modeling_gguf_pytorch_utils as reader

    def report(tensors: Sequence[Any], **_: object) -> Iterator[Any]:
        for i, tensor in enumerate(tensors):
            yield tensor
            progress((i + 1) / len(tensors))

    patches: list[tuple[Any, str, Any]] = [
        (gguf, "get_tensor_name_map", functools.cache(gguf.get_tensor_name_map)),
        (gguf, "GGUFReader", _shared_reader),
        (reader, "tqdm", report),
    ]
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in patches]
    try:
        for owner, name, value in patches:
            setattr(owner, name, value)
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)


@functools.lru_cache(maxsize=1)
def _open(path: str, mtime_ns: int) -> Any:
    from gguf.gguf_reader import GGUFReader

    return GGUFReader(path)


def _shared_reader(path: str | Path, mode: str = "r") -> Any:
    return _open(str(path), Path(path).stat().st_mtime_ns)


def forget() -> None:
    """Let go of the file that was read last (its header stays parsed until then)."""
    _open.cache_clear()


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
