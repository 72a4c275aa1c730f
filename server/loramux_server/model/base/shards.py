"""The weights of an NF4 copy, written as they come: finished files are kept when the process is killed.

A journal beside them says which files are whole and how many parts of the source they hold. It is renamed into place
after a file is on disk, so what it names is whole; a file that it does not name is written again.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from ...host.failpoints import reach
from ...host.files import sync_file, sync_folder, write_durable
from .files import JOURNAL, measure
from .fingerprint import stored_tensors

SHARD_BYTES = 1 << 30
"""Of a file: it ends with the part of the source that takes it over this. Held in memory until it is written."""
_SHARD = re.compile(r"model(?:-(\d{5})(?:-of-\d{5})?)?\.safetensors")


@dataclass(frozen=True, slots=True)
class Shard:
    """A file that is whole."""

    size: int
    sha256: str
    parts: int
    """Of the source that this file and those before it hold."""


class ShardWriter:
    """Files of tensors in ``folder``, of bounded size.

    ``maker``: all that decides what the parts are; files that another one wrote are not kept.
    """

    def __init__(self, folder: Path, maker: dict[str, Any]) -> None:
        self._folder, self._maker = folder, maker
        self._shards = self._recover()
        self._pending: dict[str, Tensor] = {}
        self._parts = self.parts_done

    @property
    def parts_done(self) -> int:
        """Parts of the source whose tensors are on disk."""
        return self._shards[-1].parts if self._shards else 0

    @property
    def nbytes(self) -> int:
        """On disk."""
        return sum(shard.size for shard in self._shards)

    def add(self, tensors: dict[str, Tensor]) -> None:
        """Take the tensors of the next part; they may be views of what is closed after this call."""
        self._pending |= {name: tensor.clone() for name, tensor in tensors.items()}
        self._parts += 1
        if sum(tensor.nbytes for tensor in self._pending.values()) >= SHARD_BYTES:
            self._write()

    def finish(self) -> None:
        """Write what is left, and give the files the names that transformers looks for."""
        if self._pending:
            self._write()
        reach("base.shards_written")
        count = len(self._shards)
        if count == 1:
            (self._folder / _draft_name(1)).rename(self._folder / "model.safetensors")
            return
        names = {_draft_name(i): f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)}
        for draft, final in names.items():
            (self._folder / draft).rename(self._folder / final)
            reach("base.shard_named")
        stored = stored_tensors(self._folder / name for name in names.values())
        index = {
            "metadata": {"total_size": sum(tensor.nbytes for tensor in stored.values())},
            "weight_map": {name: tensor.path.name for name, tensor in sorted(stored.items())},
        }
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        (self._folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")

    def _write(self) -> None:
        path = self._folder / _draft_name(len(self._shards) + 1)
        save_file(self._pending, path, metadata={"format": "pt"})
        self._pending = {}
        reach("base.shard_written")
        sync_file(path)
        self._shards.append(Shard(**measure(path), parts=self._parts))
        draft = self._folder / f"{JOURNAL}.new"
        journal = {"maker": self._maker, "shards": [asdict(shard) for shard in self._shards]}
        write_durable(draft, json.dumps(journal).encode())
        draft.rename(self._folder / JOURNAL)
        sync_folder(self._folder)
        reach("base.shard_recorded")

    def _recover(self) -> list[Shard]:
        """What is whole of an earlier try, under the names of a draft; all else in the folder goes."""
        journal = read_journal(self._folder)
        known = [Shard(**entry) for entry in journal["shards"]] if journal.get("maker") == self._maker else []
        for path in sorted(self._folder.iterdir()):
            found = _SHARD.fullmatch(path.name)
            if found:
                path.rename(self._folder / _draft_name(int(found[1] or 1)))
            elif path.name != JOURNAL:
                path.unlink()
        whole: list[Shard] = []
        for i, shard in enumerate(known, 1):
            path = self._folder / _draft_name(i)
            if not path.is_file() or measure(path) != {"size": shard.size, "sha256": shard.sha256}:
                break
            whole.append(shard)
        kept = {_draft_name(i) for i in range(1, len(whole) + 1)}
        for path in self._folder.glob("*.safetensors"):
            if path.name not in kept:
                path.unlink()
        return whole


def read_journal(folder: Path) -> dict[str, Any]:
    """What the journal of a folder says; empty if there is none that can be read."""
    try:
        journal = json.loads((folder / JOURNAL).read_text(encoding="utf-8"))
        return journal if isinstance(journal, dict) else {}
    except (OSError, ValueError):
        return {}


def _draft_name(number: int) -> str:
    return f"model-{number:05}.safetensors"
