"""transformers' own loading of a model's weights, a part at a time, so that memory holds one part and never all.

transformers makes the model on the meta device, settles its types and names, and then loads all weights at once. Here
that last step goes over the parts of the files: what one part brought is taken before the next is read.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from safetensors import safe_open
from torch import Tensor, nn

from ...core.errors import Error, invalid_field
from .fingerprint import StoredTensor, stored_tensors

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_LAYER = re.compile(r"(?:.*?\.)?(?:layers|h|block|blocks|blk)\.\d+\.")


@dataclasses.dataclass(frozen=True, slots=True)
class Part:
    """Weights that are read together: a decoder layer, or a tensor outside of the layers."""

    nbytes: int
    """In the files."""
    read: Callable[[PreTrainedModel], AbstractContextManager[Mapping[str, Any]]]
    """Opens what transformers loads, by the names that the files have."""


class Receiver(Protocol):
    """Takes the weights of one part after another."""

    def begin(self, model: PreTrainedModel, parts: list[Part]) -> int:
        """Told before anything is read, with all weights on meta. Returns how many parts it has already."""

    def take(self, model: PreTrainedModel, part: Part, loaded: dict[str, Tensor]) -> None:
        """``loaded``: what the part brought, under the model's names. The model lets go of it afterwards."""


@contextmanager
def loading_in_parts(receiver: Receiver, name: str, gguf: Callable[[], list[Part]] | None = None) -> Iterator[None]:
    """While inside, ``from_pretrained`` gives all weights to ``receiver`` and returns a model on meta.

    ``gguf`` lists the parts of a GGUF file that transformers itself would read whole. Raises INVALID_ARGUMENT on
    ``model``, called ``name``, if the files lack weights of it or have some of other shapes.
    """
    from transformers import PreTrainedModel

    whole = PreTrainedModel._load_pretrained_model

    def load(
        model: PreTrainedModel, state_dict: dict[str, Any] | None, files: list[str] | None, config: Any, *_: Any
    ) -> Any:
        # Tied weights may be in the files under one name or both, which shows only where they are read together.
        tied = bool(model.all_tied_weights_keys)
        shapes: dict[str, Tensor] = {}
        if state_dict:
            parts = _parts({key: value.data.nbytes for key, value in state_dict.items()}, tied, _pick(state_dict))
        elif gguf is not None:
            parts = gguf()
        else:
            stored = stored_tensors(map(Path, files or []))
            parts = _parts({key: tensor.nbytes for key, tensor in stored.items()}, tied, _open(stored))
            shapes = {key: torch.empty(tensor.shape, device="meta") for key, tensor in stored.items()}
        # All shapes at first, where files tell them: hours of work shall not end with a weight that is missing.
        info, *rest = whole(model, shapes, None, dataclasses.replace(config, device_map={"": "meta"}))
        if shapes:
            _check(model, info, name, set(info.missing_keys))
        done = receiver.begin(model, parts)
        missing = set(model.state_dict())
        for part in parts[done:]:
            with part.read(model) as tensors:
                info, *rest = whole(model, dict(tensors), None, config)
                _check(model, info, name, set())
                if state_dict:  # names of GGUF files, which nobody wants back
                    model._weight_conversions = None
                loaded = {key: value for key, value in model.state_dict().items() if not value.is_meta}
                receiver.take(model, part, loaded)
            missing -= loaded.keys()
            for key in loaded:
                _forget(model, key)
            del tensors, loaded
        if done == 0:
            _check(model, info, name, missing)
        info.missing_keys = set(model.all_tied_weights_keys)
        return info, *rest

    PreTrainedModel._load_pretrained_model = staticmethod(load)
    try:
        yield
    finally:
        PreTrainedModel._load_pretrained_model = staticmethod(whole)


def group_of(key: str) -> str:
    """What of the file's names are read together with ``key``: its layer's, or only itself."""
    layer = _LAYER.match(key)
    return layer.group() if layer else key


def _parts(
    sizes: dict[str, int],
    tied: bool,
    read: Callable[[list[str]], AbstractContextManager[Mapping[str, Any]]],
) -> list[Part]:
    groups: dict[str, list[str]] = {}
    for key in sorted(sizes, key=_natural):
        group = group_of(key)
        groups.setdefault("" if tied and group == key else group, []).append(key)
    return [
        Part(sum(sizes[key] for key in keys), lambda model, keys=keys: read(keys))  # type: ignore[misc]
        for keys in groups.values()
    ]


def _natural(key: str) -> list[tuple[int, str]]:
    """Layer 2 before layer 10."""
    return [(int(word), "") if word.isdigit() else (-1, word) for word in re.split(r"(\d+)", key)]


def _pick(tensors: Mapping[str, Any]) -> Callable[[list[str]], AbstractContextManager[Mapping[str, Any]]]:
    return lambda keys: nullcontext({key: tensors[key] for key in keys})


def _open(stored: dict[str, StoredTensor]) -> Callable[[list[str]], AbstractContextManager[Mapping[str, Any]]]:
    """Files are mapped into memory while their tensors are in use, and no longer."""

    @contextmanager
    def read(keys: list[str]) -> Iterator[Mapping[str, Any]]:
        with ExitStack() as stack:
            files: dict[Path, Any] = {}
            for path in {stored[key].path for key in keys}:
                files[path] = stack.enter_context(safe_open(path, framework="pt", device="cpu"))
            yield {key: files[stored[key].path].get_slice(key) for key in keys}

    return read


def _check(model: PreTrainedModel, info: Any, name: str, missing: set[str]) -> None:
    for key, found, wanted in sorted(info.mismatched_keys):
        raise _misfit(name, f"{key} has the shape {list(found)}, and its configuration says {list(wanted)}")
    for key, error in sorted(info.conversion_errors.items()):
        raise _misfit(name, f"{key} cannot be made from its files: {str(error).strip().splitlines()[-1]}")
    tied = model.all_tied_weights_keys
    missing = missing - {key for pair in tied.items() if not missing.issuperset(pair) for key in pair}
    ignored = [re.compile(pattern) for pattern in model._keys_to_ignore_on_load_missing or ()]
    absent = sorted(key for key in missing if not any(pattern.search(key) for pattern in ignored))
    if absent:
        more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
        raise _misfit(name, f"its files have no {absent[0]}{more}")


def _misfit(name: str, why: str) -> Error:
    return invalid_field("model", f"the weights of {name} do not fit its configuration: {why}")


def _forget(model: PreTrainedModel, key: str) -> None:
    """Put a weight back on meta, of the same type, as one that needs no first values."""
    path, _, last = key.rpartition(".")
    module = model.get_submodule(path)
    value = getattr(module, last)
    empty: Any = torch.empty_like(value, device="meta")
    if isinstance(value, nn.Parameter):
        empty = nn.Parameter(empty, requires_grad=False)
    empty._is_hf_initialized = True
    setattr(module, last, empty)
