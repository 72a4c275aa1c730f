"""Reading a GGUF file through transformers: dequantised weights, and a tokenizer that splits as the original does."""

from __future__ import annotations

import functools
import mmap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core.errors import invalid_field

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from .parts import Part


class GGUFFile:
    """A GGUF file whose tensors are dequantised a layer at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._wanted: frozenset[str] = frozenset()

    def read_model(self) -> PreTrainedModel:
        """The model in float32 on the CPU, as a plain transformers model without any trace of GGUF.

        Within :func:`.parts.loading_in_parts` its weights go there, from the parts of this file.
        """
        import torch
        import transformers

        # Newer versions may keep the blocks packed unless told otherwise.
        kept_packed = hasattr(transformers, "GgufConfig")
        options = {"quantization_config": transformers.GgufConfig(dequantize=True)} if kept_packed else {}
        with _reading_once(self):
            try:
                model: PreTrainedModel = transformers.AutoModelForCausalLM.from_pretrained(
                    str(self._path.parent),
                    gguf_file=self._path.name,
                    dtype=torch.float32,
                    trust_remote_code=False,
                    **options,
                )
            except (ValueError, KeyError, OSError, NotImplementedError) as error:
                message = f"transformers cannot read {self._path.name}: {_first_line(error)}"
                raise invalid_field("model", message) from error
        # transformers refuses to save a model that carries these marks.
        for owner, mark in ((model, "hf_quantizer"), (model.config, "quantization_config")):
            if hasattr(owner, mark):
                delattr(owner, mark)
        model.config._name_or_path = ""
        return model

    def parts(self) -> list[Part]:
        """The layers, and the tensors outside of them, each to be read by itself."""
        from .parts import Part, group_of

        groups: dict[str, list[Any]] = {}
        for tensor in _shared_reader(self._path).tensors:
            groups.setdefault(group_of(tensor.name), []).append(tensor)
        return [
            Part(
                sum(int(tensor.n_bytes) for tensor in group),
                functools.partial(self._dequantise, frozenset(tensor.name for tensor in group)),
            )
            for group in groups.values()
        ]

    @contextmanager
    def _dequantise(self, names: frozenset[str], model: PreTrainedModel) -> Iterator[Mapping[str, Any]]:
        import torch
        from transformers import modeling_gguf_pytorch_utils as reader

        self._wanted = names
        try:
            loaded = reader.load_gguf_checkpoint(
                str(self._path), return_tensors=True, model_to_load=model, torch_dtype=torch.float32
            )
            yield loaded["tensors"]
        finally:
            self._wanted = frozenset()
            # Else all of the file that was read counts as memory of this process.
            _shared_reader(self._path).data._mmap.madvise(mmap.MADV_DONTNEED)

    def select(self, tensors: Sequence[Any], **_: object) -> list[Any]:
        """What of the file's tensors transformers shall dequantise now: none but those of the part that is read."""
        return [tensor for tensor in tensors if tensor.name in self._wanted]

    def open(self, path: str | Path, mode: str = "r") -> Any:
        """The parsed file; without its vocabulary, which takes seconds to go through, while a part is read."""
        whole = _shared_reader(path)
        return _Trimmed(whole) if self._wanted else whole


class _Trimmed:
    """A parsed file whose lists of tokens and merges end after their first entry."""

    def __init__(self, whole: Any) -> None:
        self.tensors = whole.tensors
        self.fields = {
            name: field._replace(data=field.data[:1]) if name.startswith("tokenizer.") else field
            for name, field in whole.fields.items()
        }


def read_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a GGUF file."""
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    with _reading_once(GGUFFile(path)):
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
def _reading_once(file: GGUFFile) -> Iterator[None]:
    """Keep transformers from parsing the file's header several times and rebuilding its table of names per module.

    That, not dequantising, is most of the time it takes to read a GGUF file. Where it would go through all tensors, it
    goes through those that ``file`` selects.
    """
    import gguf
    from transformers import modeling_gguf_pytorch_utils as reader

    original, known = reader.get_gguf_hf_weights_map, {}

    def names_of(module: Any, processor: Any, *args: Any, qual_name: str = "", **options: Any) -> Any:
        key = (module, qual_name)
        if key not in known:
            known[key] = original(module, processor, *args, qual_name=qual_name, **options)
        return known[key]

    patches: list[tuple[Any, str, Any]] = [
        (gguf, "get_tensor_name_map", functools.cache(gguf.get_tensor_name_map)),
        (gguf, "GGUFReader", file.open),
        (reader, "get_gguf_hf_weights_map", names_of),
        (reader, "tqdm", file.select),
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


def _shared_reader(path: str | Path) -> Any:
    return _open(str(path), Path(path).stat().st_mtime_ns)


def forget() -> None:
    """Let go of the file that was read last (its header stays parsed until then)."""
    _open.cache_clear()


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
