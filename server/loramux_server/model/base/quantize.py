"""NF4 copies of base models: made once, kept in the state directory, loadable by plain transformers.

Every linear but the output head becomes NF4 with double quantisation in blocks of 64; the rest keeps its 16 bits.
Weights are read, quantised and written a layer at a time, so that memory holds a few of them whatever the size.
The copy is a standard pre-quantised transformers folder, so whatever reads those reads the very same weights.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import math
import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core.errors import Code, Error, invalid_field
from ...host.failpoints import reach
from ...host.files import sync_file, sync_folder
from . import gguf, hub, quiet, tokenizer_files
from .files import FILES, JOURNAL, describe, find_damage, is_linked
from .fingerprint import fingerprint
from .source import MARKER, SETTINGS, Source, find_cached, locate, locate_again, read_marker, write_marker

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from .nf4_copy import Nf4Copy

log = logging.getLogger(__name__)

Progress = Callable[[str, float | None], None]
"""Told what is being done and how far it is, 0 to 1 (None: unknown)."""

IMPORTING = "importing PyTorch and transformers"
"""What takes seconds before anything else can be done."""


BYTES_A_MINUTE = 1e9
"""Of a model's files: what two processor cores convert. More of them, or a GPU, are faster."""
KEPT_DAYS = 7
"""How long the finished files of a conversion wait for the next start that wants them."""


def _silent(step: str, fraction: float | None) -> None:
    pass


def prepare_base(model: str | None, state_dir: Path, progress: Progress = _silent) -> Path:
    """The NF4 folder of ``model`` (see :func:`.source.locate`), made now if it is not in ``state_dir``/base yet.

    Raises INVALID_ARGUMENT or NOT_FOUND on ``model``, RESOURCE_EXHAUSTED when the disk is full.
    """
    return prepare(model, state_dir, progress).folder


@dataclass(frozen=True, slots=True)
class Prepared:
    """An NF4 folder whose files are whole; ``damage`` says what was wrong with it before it was made anew."""

    folder: Path
    damage: str = ""


def prepare(model: str | None, state_dir: Path, progress: Progress = _silent) -> Prepared:
    """``prepare_base``, with what was found of an earlier copy.

    Raises DATA_LOSS when that is damaged and what it was made from is not at hand.
    """
    cache = state_dir / "base"
    _sweep(cache)
    target = find_cached(model, cache, SETTINGS)
    source = None
    if target is None:
        progress("looking for the base model", None)
        source = locate(model)
        target = cache / source.key(SETTINGS)
    damage = ""
    if read_marker(target).get("settings") == SETTINGS:
        progress("checking the base", None)
        damage = find_damage(target)
        if not damage:
            return Prepared(target)
        source = _source_again(target, damage)
        log.error("the NF4 copy in %s is damaged: %s. It is made again", target, damage)
    assert source is not None
    if source.kind == "hub":
        progress("checking the files from the hub", None)
        hub.verify(source.path)
    if not _already_nf4(source):
        progress(_announcement(source), None)
    progress(IMPORTING, None)
    try:
        convert(source, target, progress, bool(damage))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise Error(
            Code.RESOURCE_EXHAUSTED,
            f"the disk under {cache} is full; free space or choose another --state-dir",
            reason="DISK_FULL",
        ) from error
    return Prepared(target, damage)


def _sweep(cache: Path) -> None:
    """Remove what conversions that were killed left, of whatever base. What another process is at stays.

    Files that are whole stay for ``KEPT_DAYS``, so that starting another base in between costs nothing.
    """
    for draft in cache.glob(".*.tmp"):
        with suppress(OSError):
            if (draft / JOURNAL).stat().st_mtime > time.time() - KEPT_DAYS * 86_400:
                continue
        with suppress(OSError), draft.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(draft, ignore_errors=True)


def _announcement(source: Source) -> str:
    files = source.path.glob("*.safetensors") if source.path.is_dir() else [source.path]
    minutes = math.ceil(sum(file.stat().st_size for file in files) / BYTES_A_MINUTE)
    return f"converting {source.name} to NF4, only at its first start: about {minutes} min"


def _source_again(target: Path, damage: str) -> Source:
    """What a damaged copy was made from. Raises DATA_LOSS where it cannot be made again."""
    made = read_marker(target)
    if is_linked(target):
        where = (made.get("source") or {}).get("path") or "the hub's cache"
        hint = f"it is used as it is from {where}: bring these files back from where they came"
    else:
        try:
            return locate_again(made)
        except Error as error:
            hint = f"it cannot be made again: {error.message}. Bring that back, or restore {target} from a copy"
    raise Error(
        Code.DATA_LOSS,
        f"the base {made.get('name', target.name)} is damaged in {target}: {damage}; {hint}",
        reason="BASE_DAMAGED",
    )


def convert(source: Source, target: Path, progress: Progress = _silent, damaged: bool = False) -> None:
    """Write the NF4 folder of ``source`` to ``target``: all of it or nothing, also when the power fails.

    A second process that wants the same folder waits and then finds it made. One that is ``damaged`` is moved aside.
    A conversion that was killed goes on where it was; one that failed leaves nothing.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.with_name(f".{target.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        before = read_marker(target)
        if before.get("settings") == SETTINGS and not (damaged and find_damage(target)):
            return
        if damaged:
            _move_aside(target)
        draft = target.with_name(f".{target.name}.tmp")
        shutil.rmtree(target, ignore_errors=True)
        draft.mkdir(exist_ok=True)
        try:
            _fill(draft, source, progress)
            os.rename(draft, target)
            sync_folder(target.parent)
            reach("base.converted")
            (target / JOURNAL).unlink(missing_ok=True)
            if damaged and read_marker(target).get("fingerprint") != before.get("fingerprint"):
                log.warning("the copy that was made again differs: adapters trained on the old one are refused")
        except Exception:
            shutil.rmtree(draft, ignore_errors=True)
            raise
        finally:
            gguf.forget()


def _move_aside(target: Path) -> None:
    """Keep a damaged copy under a name that no start looks at, in place of an earlier one."""
    aside = target.with_name(f".{target.name}.damaged")
    shutil.rmtree(aside, ignore_errors=True)
    os.rename(target, aside)


def _fill(draft: Path, source: Source, progress: Progress) -> None:
    with quiet.transformers():
        notes = _link(source, draft) if _already_nf4(source) else _write_nf4(source, draft, progress)
    progress("checking the NF4 copy", None)
    made = {
        "name": source.name,
        "asked": source.identity.get("asked", ""),
        "fingerprint": fingerprint(draft),
        "source": source.identity,
        "settings": SETTINGS,
        "notes": notes,
        FILES: describe(draft),
    }
    reach("base.checked")
    write_marker(draft, made)
    _sync(draft)
    reach("base.marked")


def _write_nf4(source: Source, folder: Path, progress: Progress) -> list[str]:
    """Convert, or go on where an earlier try was killed; returns notes on what was left in 16 bits."""
    import torch

    from .nf4_copy import Nf4Copy
    from .parts import loading_in_parts

    def report(done: float) -> None:
        progress("quantising to NF4", done)

    if source.kind == "gguf":
        progress("reading the GGUF file", None)
        file = gguf.GGUFFile(source.path)
        copy = Nf4Copy(folder, torch.bfloat16, report)  # what is not quantised was 16-bit before the file was made
        with loading_in_parts(copy, source.name, file.parts):
            model = file.read_model()
    else:
        progress("reading the model", None)
        copy = Nf4Copy(folder, None, report)
        with loading_in_parts(copy, source.name):
            model = _read(source)
    copy.finish()
    progress("writing the NF4 copy", None)
    write_config(model, copy, folder)
    tokenizer_files.write(source, folder, model.config)
    return copy.notes


def _read(source: Source) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    config = _config(source)
    if "quantization_config" in config:
        method = config["quantization_config"].get("quant_method", "unknown")
        raise invalid_field(
            "model", f"{source.name} is already quantised ({method}); give the 16-bit model or a bitsandbytes NF4 one"
        )
    try:
        return AutoModelForCausalLM.from_pretrained(
            source.path,
            dtype="auto",
            attn_implementation="eager",  # else config.json chooses, and may name kernels of a hub
            trust_remote_code=False,
            use_safetensors=True,
            local_files_only=True,
        )
    except (ValueError, KeyError, OSError) as error:
        if "auto_map" in config:
            raise invalid_field(
                "model",
                f"{source.name} needs code of its own (auto_map in its config.json), which is never run; give a model "
                "of an architecture that transformers has",
            ) from error
        raise invalid_field(
            "model", f"transformers cannot load {source.name} as a text model: {str(error).strip().splitlines()[0]}"
        ) from error


def write_config(model: PreTrainedModel, copy: Nf4Copy, folder: Path) -> None:
    """The configuration as transformers writes it beside the weights of a quantised model."""
    import torch
    from transformers import BitsAndBytesConfig

    model.config.quantization_config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
        llm_int8_skip_modules=copy.keep,
    )
    model.config.dtype = str(copy.rest or model.dtype).removeprefix("torch.")
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    if model.can_generate():
        model.generation_config.save_pretrained(folder)


def _config(source: Source) -> dict[str, Any]:
    """What the config.json of a folder says."""
    try:
        config = json.loads((source.path / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise invalid_field("model", f"the config.json of {source.name} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise invalid_field("model", f"the config.json of {source.name} is no JSON object")
    return config


def _already_nf4(source: Source) -> bool:
    if source.kind == "gguf":
        return False
    config = _config(source).get("quantization_config") or {}
    if config.get("quant_method", "bitsandbytes") != "bitsandbytes" or not config.get("load_in_4bit"):
        return False
    if config.get("bnb_4bit_quant_type") != "nf4":
        raise invalid_field("model", f"{source.name} is 4-bit but not NF4; give the 16-bit model or an NF4 one")
    return True


def _link(source: Source, folder: Path) -> list[str]:
    """A model that is NF4 already is used as it is: its files stay where they are."""
    for remains in folder.iterdir():
        remains.unlink()
    for file in sorted(source.path.iterdir()):
        if file.is_file() and file.name != MARKER:
            (folder / file.name).symlink_to(file.resolve())
    return [f"used as it is from {source.path}"]


def _sync(folder: Path) -> None:
    for file in folder.iterdir():
        if not file.is_symlink():
            sync_file(file)
    sync_folder(folder)
