"""Checkpoints of a run: a folder of safetensors and JSON that is complete or not there.

Only the two files of a checkpoint are ever opened, by their names; the data position is the step number, because the
order of rows, the learning rate and dropout are functions of it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
import time
import uuid
from array import array
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import safetensors
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from ..core.errors import Error
from ..core.failpoints import reach
from ..core.files import read_regular, storage_errors, sync_folder, write_durable
from ..core.jobs import TrainCommand

log = logging.getLogger(__name__)

TENSORS_FILE = "state.safetensors"
RECORD_FILE = "state.json"
KEPT = 2
"""A damaged newest checkpoint leaves the one before it."""
FORMAT = 1
ROWS_A_PIECE = 2000
_PLACE = re.compile(r"step-[0-9]{8,}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A run after ``step`` optimiser steps: host copies of its tensors by name, and its figures."""

    step: int
    tensors: dict[str, Tensor]
    figures: dict[str, float]


class Checkpoints:
    """The checkpoints of one job. Without a folder nothing is written or found.

    Files are written on a thread of their own, one checkpoint at a time; every method is for one other thread.
    """

    def __init__(self, command: TrainCommand, key: str, clock: Callable[[], float] = time.monotonic) -> None:
        """``key`` is the run's :func:`identity`."""
        self._folder = Path(command.checkpoint_dir) if command.checkpoint_dir else None
        self._every, self._seconds, self._clock = command.checkpoint_every, command.checkpoint_seconds, clock
        self._identity = key
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None
        self._step, self._at = 0, clock()

    def latest(self) -> Snapshot | None:
        """The newest complete checkpoint of this very run; damaged ones and those of other data are passed over."""
        if self._folder is None:
            return None
        for place in self._places():
            try:
                snapshot = self._read(place)
            except (Error, OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
                log.warning("checkpoint %s cannot be used: %s", place.name, error)
                continue
            self._step = snapshot.step
            return snapshot
        return None

    def due(self, step: int) -> bool:
        """Whether the state after ``step`` should be saved now. Not while the one before is being written."""
        if self._folder is None or self._writing is not None:
            return False
        by_steps = self._every > 0 and step - self._step >= self._every
        return by_steps or (step > self._step and self._clock() - self._at >= self._seconds)

    def begin(self, snapshot: Snapshot) -> None:
        """Start to write, after what is being written; ``settled`` tells how it went."""
        self.settled(wait=True)
        if self._folder is not None and snapshot.step > self._step:
            self._writing = self._writer.submit(self._write, self._folder, snapshot)
            self._step, self._at = snapshot.step, self._clock()

    def settled(self, *, wait: bool = False) -> int | None:
        """The step of the checkpoint that became durable since the last call, if one did.

        Raises what stopped it: RESOURCE_EXHAUSTED for a full disk, UNAVAILABLE for other failures of the storage.
        """
        if self._writing is None or not (wait or self._writing.done()):
            return None
        writing, self._writing = self._writing, None
        writing.result()
        return self._step

    @contextmanager
    def saved_at_the_end(self, snapshot: Callable[[], Snapshot]) -> Iterator[None]:
        """Whatever begins inside is durable at the end; a block that is left early leaves its state behind too."""
        try:
            yield
            self.settled(wait=True)
        except BaseException:
            # Why the block was left is what counts; the checkpoint before this one is still there.
            with suppress(Error):
                self.settled(wait=True)
            if self._folder is not None and not self._folder.is_dir():
                raise  # the job was cancelled, and all of it is gone
            try:
                self.begin(snapshot())
                self.settled(wait=True)
            except Error as error:
                log.warning("the state of a stopped job was not saved: %s", error.message)
            raise
        finally:
            self._writer.shutdown(wait=True)

    def _places(self) -> list[Path]:
        """Folders of checkpoints, newest first."""
        assert self._folder is not None
        if not self._folder.is_dir():
            return []
        return sorted((p for p in self._folder.iterdir() if _PLACE.fullmatch(p.name)), reverse=True)

    def _read(self, place: Path) -> Snapshot:
        record = json.loads(read_regular(place / RECORD_FILE, max_bytes=1 << 20))
        if record["format"] != FORMAT or record["identity"] != self._identity:
            raise ValueError("it belongs to other data, settings or another base")
        data = read_regular(place / TENSORS_FILE)
        if hashlib.sha256(data).hexdigest() != record["sha256"]:
            raise ValueError("its tensors are damaged")
        figures = {str(name): float(value) for name, value in record["figures"].items()}
        return Snapshot(int(record["step"]), load_safetensors(data), figures)

    def _write(self, folder: Path, snapshot: Snapshot) -> None:
        data = save_safetensors(snapshot.tensors)
        record = {
            "format": FORMAT,
            "identity": self._identity,
            "step": snapshot.step,
            "figures": snapshot.figures,
            "sha256": hashlib.sha256(data).hexdigest(),
        }
        staged, place = folder / f"tmp-{uuid.uuid4().hex}", folder / f"step-{snapshot.step:08}"
        try:
            with storage_errors("cannot write a checkpoint"):
                staged.mkdir()
                write_durable(staged / TENSORS_FILE, data)
                write_durable(staged / RECORD_FILE, json.dumps(record).encode())
                sync_folder(staged)
                reach("checkpoint.written")
                if place.exists():  # damaged, or it would have been taken up
                    shutil.rmtree(place)
                staged.rename(place)
                sync_folder(folder)
        finally:
            shutil.rmtree(staged, ignore_errors=True)
        reach("checkpoint.renamed")
        for old in self._places()[KEPT:]:
            shutil.rmtree(old, ignore_errors=True)
        for left in folder.glob("tmp-*"):  # of an attempt that was killed
            shutil.rmtree(left, ignore_errors=True)


def identity(command: TrainCommand, base: str, held: int) -> Generator[int, None, str]:
    """A digest of all that decides how a run goes: two runs with the same one are the same run.

    ``base`` names the weights and the precision that the run computes with. Hundreds of thousands of rows take a
    while, so it comes in pieces, each yielding ``held``.
    """
    digest = hashlib.blake2b(digest_size=32)
    stacks = [stack.key for stack in command.stacks]
    init = command.init.digest if command.init else ""
    digest.update(json.dumps([base, asdict(command.spec), stacks, init], sort_keys=True).encode())
    for rows in (command.rows, command.validation):
        digest.update(f"/{len(rows)}".encode())
        for i, row in enumerate(rows, start=1):
            digest.update(f"/{len(row.input_ids)},{row.stack}/".encode())
            digest.update(array("I", row.input_ids).tobytes() + bytes(row.labels))
            if row.rejected is not None:
                digest.update(f"/{len(row.rejected.input_ids)}-/".encode())
                digest.update(array("I", row.rejected.input_ids).tobytes() + bytes(row.rejected.labels))
            if i % ROWS_A_PIECE == 0:
                yield held
    return digest.hexdigest()
