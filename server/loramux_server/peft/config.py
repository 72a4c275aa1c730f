"""Strict reading of ``adapter_config.json``: LoRA and nothing else, and no string of it is ever run or looked up.

PEFT's own reader treats names as regular expressions and imports modules that the file names; this one refuses
what it does not know, and says what to do instead.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

from ..core.errors import Code, Error, FieldViolation, invalid
from ..core.reading.encodings import as_utf8
from ..core.types import CONFIG_FILE as CONFIG_FILE
from .lora_config import ALL_LINEAR, BY_PATTERN, LoraConfig

MAX_CONFIG_BYTES = 1 << 20
MAX_NAMES = 16_384
MAX_ALPHA = 1e6
V = TypeVar("V")

_NAME = re.compile(r"[A-Za-z0-9_]{1,128}(?:\.[A-Za-z0-9_]{1,128}){0,31}", re.ASCII)
# Initialisations that leave the base as it is. The others (PiSSA, OLoRA, CorDA, LoftQ, ...) change its weights.
_HARMLESS_INITS = (True, False, None, "gaussian", "orthogonal", "eva", "default")


def parse_config(data: bytes, *, max_rank: int = 256) -> LoraConfig:
    """Read the bytes of an ``adapter_config.json``.

    Raises INVALID_ARGUMENT with a violation for each bad field.
    """
    with suppress(UnicodeDecodeError):  # which is told as what it is: no JSON
        data = as_utf8(data)
    reader = _Reader(load_object(data, CONFIG_FILE), max_rank)
    config = reader.config()
    if reader.violations:
        raise invalid(reader.violations, reason="BAD_ADAPTER_CONFIG")
    return config


def load_object(data: bytes, what: str) -> dict[str, Any]:
    """Parse a JSON object; INVALID_ARGUMENT for anything else, a key given twice or nesting without end."""
    try:
        found = json.loads(data.decode("utf-8"), object_pairs_hook=_unique)
        # An escape such as "\\ud800" alone is no text: neither safetensors nor protobuf can carry it.
        json.dumps(found, ensure_ascii=False).encode("utf-8")
    # RecursionError: nested too deep; ValueError: not UTF-8, not JSON, a number of thousands of digits.
    except (ValueError, RecursionError) as exc:
        reason = "nested too deep" if isinstance(exc, RecursionError) else str(exc)[:120]
        raise Error(Code.INVALID_ARGUMENT, f"{what} is not valid JSON: {reason}", reason="BAD_JSON") from None
    if not isinstance(found, dict):
        raise Error(Code.INVALID_ARGUMENT, f"{what} must hold a JSON object", reason="BAD_JSON")
    return found


def _plain_name(key: str) -> str | None:
    """The name that a key of a pattern is; None for a regular expression.

    PEFT reads keys as regular expressions: with an anchor and escaped dots they still are plain names.
    """
    name = key.replace("\\.", ".")
    return name if _NAME.fullmatch(name.removeprefix("^")) else None


def shown(value: object) -> str:
    """A value for an error message, cut to a readable length."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _given(value: object) -> str:
    return "missing" if value is None else shown(value)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is given twice")
    return found


def _empty(value: object) -> bool:
    return value is None or value is False or value in ("", [], {})


class _Reader:
    """Reads the known keys of a config, collecting what is wrong."""

    def __init__(self, found: dict[str, Any], max_rank: int) -> None:
        self.found, self.max_rank = found, max_rank
        self.violations: list[FieldViolation] = []

    def config(self) -> LoraConfig:
        if self.found.get("peft_type") != "LORA":
            self._bad("peft_type", f"is {shown(self.found.get('peft_type'))}; only 'LORA' adapters can be served")
            return LoraConfig(1, 1.0)
        self._refuse_unsupported()
        return LoraConfig(
            rank=self._rank("r", self.found.get("r")),
            alpha=self._alpha("lora_alpha", self.found.get("lora_alpha")),
            rslora=self._flag("use_rslora"),
            target_modules=self._target_modules(),
            layers=self._layers(),
            layers_pattern=self._layers_pattern(),
            rank_pattern=self._rank_pattern(),
            alpha_pattern=self._pattern("alpha_pattern", self._alpha),
            base_name=self._text("base_model_name_or_path", 1024),
            ranks_by_pattern=self._ranks_by_pattern(),
        )

    def _refuse_unsupported(self) -> None:
        for key, value in self.found.items():
            if key in _UNSUPPORTED and not _empty(value):
                self._bad(key, _UNSUPPORTED[key])
            elif key not in _KNOWN and not _empty(value):
                self._bad(shown(key)[1:-1], "is not a setting of LoRA adapters that this server knows; remove it")
        if self.found.get("bias", "none") not in ("none", None):
            self._bad("bias", f"is {shown(self.found['bias'])}; train with bias='none'")
        if self.found.get("task_type") not in ("CAUSAL_LM", None):
            self._bad("task_type", f"is {shown(self.found['task_type'])}; only 'CAUSAL_LM' (or none) can be served")
        if self.found.get("megatron_core", "megatron.core") not in ("megatron.core", None):
            self._bad("megatron_core", "Megatron layers are not supported; remove it")
        if self.found.get("init_lora_weights") not in _HARMLESS_INITS:
            self._bad(
                "init_lora_weights",
                f"is {shown(self.found['init_lora_weights'])}, which changes the base's weights; convert the adapter "
                "with save_pretrained(path_initial_model_for_weight_conversion=...)",
            )
        self._check_auto_mapping()

    def _check_auto_mapping(self) -> None:
        """PEFT and Unsloth note the model's class here. It is never used; anything but such a note is refused."""
        mapping = self.found.get("auto_mapping")
        if _empty(mapping):
            return
        ok = (
            isinstance(mapping, dict)
            and mapping.keys() <= {"base_model_class", "parent_library", "unsloth_fixed"}
            and isinstance(mapping.get("unsloth_fixed", True), bool)
            and isinstance(name := mapping.get("base_model_class", "X"), str)
            and name.isidentifier()
            and isinstance(library := mapping.get("parent_library", "transformers"), str)
            and re.fullmatch(r"transformers(\.[A-Za-z0-9_]{1,64}){0,8}", library, re.ASCII) is not None
        )
        if not ok:
            self._bad("auto_mapping", "names code that is not transformers' own; remove it")

    def _target_modules(self) -> tuple[str, ...]:
        found = self.found.get("target_modules")
        if found == ALL_LINEAR:
            return (ALL_LINEAR,)
        if isinstance(found, str) and found:
            return (BY_PATTERN,)
        return self._names("target_modules", found)

    def _names(self, field: str, found: Any) -> tuple[str, ...]:
        if not isinstance(found, list) or not found or len(found) > MAX_NAMES:
            self._bad(field, f"must be a list of 1 to {MAX_NAMES} module names")
            return ()
        for i, name in enumerate(found):
            if not isinstance(name, str) or not _NAME.fullmatch(name):
                self._bad(f"{field}[{i}]", f"{shown(name)} is not a module name (patterns are not supported)")
                return ()
        return tuple(found)

    def _layers(self) -> tuple[int, ...] | None:
        found = self.found.get("layers_to_transform")
        if found is None or found == []:
            return None
        layers = found if isinstance(found, list) else [found]
        if len(layers) > MAX_NAMES or not all(type(x) is int and 0 <= x < 100_000 for x in layers):
            self._bad("layers_to_transform", "must be a layer number or a list of them, counted from 0")
            return None
        return tuple(sorted(set(layers)))

    def _layers_pattern(self) -> tuple[str, ...]:
        found = self.found.get("layers_pattern")
        if _empty(found):
            return ()
        names = self._names("layers_pattern", [found] if isinstance(found, str) else found)
        if any("." in name for name in names):
            self._bad("layers_pattern", "must be a name without dots, such as 'layers'")
        return names

    def _ranks_by_pattern(self) -> bool:
        found = self.found.get("rank_pattern")
        return isinstance(found, dict) and not all(map(_plain_name, found))

    def _rank_pattern(self) -> tuple[tuple[str, int], ...]:
        """Ranks by module; with patterns none, because the tensors tell. The numbers are checked all the same."""
        if not self._ranks_by_pattern():
            return self._pattern("rank_pattern", self._rank)
        for key, value in self.found["rank_pattern"].items():
            self._rank(f"rank_pattern[{shown(key)}]", value)
        return ()

    def _pattern(self, field: str, check: Callable[[str, Any], V]) -> tuple[tuple[str, V], ...]:
        found = self.found.get(field)
        if _empty(found):
            return ()
        if not isinstance(found, dict) or len(found) > MAX_NAMES:
            self._bad(field, f"must map at most {MAX_NAMES} module names to numbers")
            return ()
        pairs = []
        for key, value in found.items():
            if (name := _plain_name(key)) is None:
                self._bad(
                    f"{field}[{shown(key)}]",
                    "is a regular expression, which is never run; write a module's name or the end of one for each",
                )
                return ()
            pairs.append((name, check(f"{field}[{key}]", value)))
        return tuple(pairs)

    def _rank(self, field: str, value: Any) -> int:
        if type(value) is int and 1 <= value <= self.max_rank:
            return value
        self._bad(field, f"is {_given(value)}; it must be a whole number from 1 to {self.max_rank}")
        return 1

    def _alpha(self, field: str, value: Any) -> float:
        if type(value) in (int, float) and 0 < value <= MAX_ALPHA:
            return float(value)
        self._bad(field, f"is {_given(value)}; it must be a number above 0 and at most {MAX_ALPHA:g}")
        return 1.0

    def _flag(self, field: str) -> bool:
        value = self.found.get(field)
        if value is None or isinstance(value, bool):
            return bool(value)
        self._bad(field, f"is {shown(value)}; it must be true or false")
        return False

    def _text(self, field: str, most: int) -> str:
        value = self.found.get(field)
        return value[:most] if isinstance(value, str) else ""

    def _bad(self, field: str, description: str) -> None:
        if len(self.violations) < 20:
            self.violations.append(FieldViolation(field, description))


_UNSUPPORTED = {
    "use_dora": "DoRA is not supported; train with use_dora=False",
    "modules_to_save": "fully trained modules cannot be stacked per request; train with modules_to_save=None",
    "trainable_token_indices": "trained tokens cannot be stacked per request; train without them",
    "layer_replication": "replicated layers change the base; train without them",
    "exclude_modules": "is not supported; list the modules to adapt in target_modules instead",
    "target_parameters": "adapters on bare parameters are not supported; adapt linear modules",
    "megatron_config": "Megatron layers are not supported",
    "loftq_config": "LoftQ changes the base's weights; convert the adapter first",
    "corda_config": "CorDA changes the base's weights; convert the adapter first",
    "lora_ga_config": "LoRA-GA changes the base's weights; convert the adapter first",
    "lora_bias": "a bias on lora_B is not supported; train with lora_bias=False",
    "fan_in_fan_out": "transposed weights are not supported; the base's layers are plain linears",
    "alora_invocation_tokens": "activated LoRA is not supported",
    "arrow_config": "Arrow routing is not supported",
    "kasa_config": "KaSA is not supported",
    "monteclora_config": "MonteCLoRA is not supported",
    "velora_config": "VeLoRA is not supported",
    "use_bdlora": "block-diagonal LoRA is not supported",
    "use_qalora": "QA-LoRA is not supported",
    "ensure_weight_tying": "is not supported; adapt the modules themselves",
    "tokenizer_kwargs": "adapters bring no tokenizer; remove it",
}
# Read above, or without effect on what the adapter computes.
_KNOWN = {
    *_UNSUPPORTED,
    *("peft_type", "r", "lora_alpha", "use_rslora", "target_modules", "layers_to_transform", "layers_pattern"),
    *("rank_pattern", "alpha_pattern", "base_model_name_or_path", "bias", "task_type", "megatron_core"),
    *("init_lora_weights", "auto_mapping", "peft_version", "revision", "inference_mode", "lora_dropout"),
    *("qalora_group_size", "eva_config", "runtime_config"),
}
