"""Checkpoints of a run: a folder of safetensors and JSON that is complete or not there.

Only the two files of a checkpoint are ever opened, by their names; the data position is the step number, because the
order of rows, the learning rate and dropout are functions of it. The record has the SHA-256 of the tensors and of
itself, so nothing in a checkpoint is taken up that is not what was written. It also tells again what the run has
reported: what was on its way to the job's events when the process was killed is not lost with it.
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
from typing import Any

import safetensors
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from ..core.errors import Error
from ..core.jobs import TrainCommand, TrainEvent, TrainEventType
from ..host.failpoints import reach
from ..host.files import read_regular, storage_errors, sync_folder, write_durable

log = logging.getLogger(__name__)

TENSORS_FILE = "state.safetensors"
RECORD_FILE = "state.json"
KEPT = 2
"""A damaged newest checkpoint leaves the one before it."""
FORMAT = 2
MAX_RECORD_BYTES = 1 << 25
MOST_TOLD = 10_000
"""Most reports that a checkpoint tells again: many more than can be on their way."""
ROWS_A_PIECE = 2000
_PLACE = re.compile(r"step-[0-9]{8,}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A run after ``step`` optimiser steps: host copies of its tensors by name, and its figures."""

    step: int
    tensors: dict[str, Tensor]
    figures: dict[str, float]
    told: tuple[TrainEvent, ...] = ()
    """The latest steps and evaluations that the run reported, oldest first."""


@dataclass(frozen=True, slots=True)
class PassedOver:
    """A checkpoint that cannot be used. ``damaged``: its bytes are not those that were written."""

    step: int
    reason: str
    damaged: bool


class _Damaged(ValueError):
    pass


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
        self._useless: set[Path] = set()
        self.passed_over: list[PassedOver] = []
        """What ``latest`` could not use, newest first."""

    def latest(self) -> Snapshot | None:
        """The newest checkpoint of this very run that is whole; ``passed_over`` says why newer ones are not it."""
        if self._folder is None:
            return None
        for place in self._places():
            try:
                snapshot = self._read(place)
            except (Error, OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
                damaged = isinstance(error, _Damaged | OSError | Error)
                words = (error.strerror if isinstance(error, OSError) else "") or str(error)
                step = int(place.name.removeprefix("step-"))
                self.passed_over.append(PassedOver(step, words, damaged))
                log.warning("checkpoint %s is passed over: %s", place, words)
                self._useless.add(place)
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
        record = _parsed(_read_file(place / RECORD_FILE, MAX_RECORD_BYTES))
        kind = record.get("format")
        if kind != 1 and record.get("record_sha256") != _digest_of(record):  # format 1 had none
            raise _Damaged(f"{RECORD_FILE} does not hold what was written")
        if kind not in (1, FORMAT):
            raise ValueError(f"it has format {kind!r}, and this version reads up to {FORMAT}")
        if record["identity"] != self._identity:
            raise ValueError("it belongs to other data, settings or another base")
        data = _read_file(place / TENSORS_FILE)
        if hashlib.sha256(data).hexdigest() != record["sha256"]:
            raise _Damaged(f"{TENSORS_FILE} does not hold what was written")
        figures = {str(name): float(value) for name, value in record["figures"].items()}
        told = (
            TrainEvent(TrainEventType(k), step=s, total_steps=n, metrics=m) for k, s, n, m in record.get("told", ())
        )
        return Snapshot(int(record["step"]), load_safetensors(data), figures, tuple(told))

    def _write(self, folder: Path, snapshot: Snapshot) -> None:
        data = save_safetensors(snapshot.tensors)
        told = [[e.type.value, e.step, e.total_steps, e.metrics] for e in snapshot.told[-MOST_TOLD:]]
        record: dict[str, Any] = {
            "format": FORMAT,
            "identity": self._identity,
            "step": snapshot.step,
            "figures": snapshot.figures,
            "sha256": hashlib.sha256(data).hexdigest(),
            "told": told,
        }
        record["record_sha256"] = _digest_of(record)
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
        self._useless.discard(place)
        useful = [place for place in self._places() if place not in self._useless]
        for old in (*useful[KEPT:], *self._useless):
            shutil.rmtree(old, ignore_errors=True)
        for left in folder.glob("tmp-*"):  # of an attempt that was killed
            shutil.rmtree(left, ignore_errors=True)


def _read_file(path: Path, max_bytes: int | None = None) -> bytes:
    try:
        return read_regular(path, max_bytes=max_bytes)
    except FileNotFoundError:
        raise _Damaged(f"{path.name} is missing") from None


def _parsed(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise _Damaged(f"{RECORD_FILE} does not hold what was written")
    return found


def _digest_of(record: dict[str, Any]) -> str:
    """The digest of a record, but for the field that holds it."""
    rest = {name: value for name, value in record.items() if name != "record_sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


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
