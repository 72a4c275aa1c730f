"""Checkpoints of a job: folders of one safetensors and one JSON file that are complete or not there.

The position in the data is the step number, because the order of rows, the learning rate and dropout are functions of
it. The JSON record has the SHA-256 of the tensors and of itself, so that damage is found before a job resumes from it.
It also repeats the latest reports: some may not have reached the job's events when the process was killed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
import uuid
from array import array
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from ...core.errors import Error
from ...core.jobs import TrainCommand, TrainEvent, TrainEventType, TrainRow
from ...host.failpoints import reach
from ...host.files import read_regular, storage_errors, sync_folder, write_durable
from ...model.out_of_memory import out_of_memory
from ...store.checkpoint_places import KEPT, checkpoint_name, checkpoint_places, step_of
from ..work import Held

log = logging.getLogger(__name__)

TENSORS_FILE = "state.safetensors"
RECORD_FILE = "state.json"
FORMAT = 2
MAX_RECORD_BYTES = 1 << 25
MAX_REPORTED = 10_000
"""Most reports that a checkpoint repeats: many more than can be on their way at a time."""
ROWS_PER_TASK = 2000
"""Rows that are hashed between two turns of other jobs."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state of a job after ``step`` optimizer steps: tensors by name, copied to the host, and plain numbers."""

    step: int
    tensors: dict[str, Tensor]
    numbers: dict[str, float]
    reported: tuple[TrainEvent, ...] = ()
    """The latest steps and evaluations that the job reported, oldest first."""
    copied: torch.cuda.Event | None = None
    """After which the tensors may be read; None: at once."""


@dataclass(frozen=True, slots=True)
class Skipped:
    """A checkpoint that cannot be used. ``damaged``: its bytes are not those that were written."""

    step: int
    reason: str
    damaged: bool


class _Damaged(ValueError):
    pass


class Checkpoints:
    """The checkpoints of one job. Where the command names no folder, nothing is written or found.

    Files are written on a thread of their own, one checkpoint at a time. All methods are called from one other thread.
    """

    def __init__(self, command: TrainCommand, identity: str, clock: Callable[[], float] = time.monotonic) -> None:
        """``identity``: see :func:`run_identity`."""
        self._folder = Path(command.checkpoint_dir) if command.checkpoint_dir else None
        self._every, self._seconds, self._clock = command.checkpoint_every, command.checkpoint_seconds, clock
        self._identity = identity
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None
        self._step, self._at = 0, clock()
        self._durable = 0  # step of the last checkpoint that was written
        self._missed = 0  # step whose checkpoint found no memory
        self._useless: set[Path] = set()
        self.skipped: list[Skipped] = []
        """The checkpoints that ``latest`` could not use, newest first."""

    def latest(self) -> Snapshot | None:
        """The newest undamaged checkpoint with this identity; ``skipped`` has the newer ones, each with a reason."""
        if self._folder is None:
            return None
        for place in self._places():
            try:
                snapshot = self._read(place)
            except (Error, OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
                damaged = isinstance(error, _Damaged | OSError | Error)
                reason = (error.strerror if isinstance(error, OSError) else "") or str(error)
                step = step_of(place)
                self.skipped.append(Skipped(step, reason, damaged))
                log.warning("checkpoint %s is not used: %s", place, reason)
                self._useless.add(place)
                continue
            self._step = self._durable = snapshot.step
            return snapshot
        return None

    def due(self, step: int) -> bool:
        """Whether the state after ``step`` should be saved now; never while another checkpoint is being written."""
        if self._folder is None or self._writing is not None:
            return False
        by_steps = self._every > 0 and step - max(self._step, self._missed) >= self._every
        return by_steps or (step > self._step and self._clock() - self._at >= self._seconds)

    def begin(self, snapshot: Snapshot) -> None:
        """Start to write a checkpoint once the one before it is written. Raises what :meth:`finished` raises."""
        self.finished(wait=True)
        if self._folder is not None and snapshot.step > self._step:
            self._writing = self._writer.submit(self._write, self._folder, snapshot)
            self._step, self._at = snapshot.step, self._clock()

    def finished(self, *, wait: bool = False) -> int | None:
        """The step of the checkpoint that became durable since the last call, if one did.

        One that found no memory is missed. Raises RESOURCE_EXHAUSTED where the disk is full, UNAVAILABLE for other
        failures of the storage.
        """
        if self._writing is None or not (wait or self._writing.done()):
            return None
        writing, self._writing = self._writing, None
        try:
            writing.result()
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            self.miss(self._step)
            self._step = self._durable
            return None
        self._durable = self._step
        return self._step

    def miss(self, step: int) -> None:
        """There is no memory for a checkpoint at ``step``: the next is due as if it had been written."""
        log.warning("no memory for the checkpoint at step %d", step)
        self._missed, self._at = step, self._clock()

    @contextmanager
    def saved_at_the_end(self, snapshot: Callable[[], Snapshot]) -> Iterator[None]:
        """At the end of the block all checkpoints are durable; a block that raises saves its state as one more."""
        try:
            yield
            self.finished(wait=True)
        except BaseException:
            # The block's own error is the one to raise; the checkpoint before this one is still there.
            with suppress(Error):
                self.finished(wait=True)
            if self._folder is not None and not self._folder.is_dir():
                raise  # the job was cancelled and its folder is gone
            try:
                self.begin(snapshot())
                self.finished(wait=True)
            except (Error, RuntimeError, MemoryError) as error:
                if not isinstance(error, Error) and not out_of_memory(error):
                    raise
                log.warning("the checkpoint of a stopped job was not written: %s", error)
            raise
        finally:
            self._writer.shutdown(wait=True)

    def _places(self) -> list[Path]:
        """Folders of checkpoints, newest first."""
        assert self._folder is not None
        return checkpoint_places(self._folder)

    def _read(self, place: Path) -> Snapshot:
        record = _parsed(_read_file(place / RECORD_FILE, MAX_RECORD_BYTES))
        kind = record.get("format")
        if kind != 1 and record.get("record_sha256") != _digest_of(record):  # format 1 had none
            raise _Damaged(f"{RECORD_FILE} does not hold what was written")
        if kind not in (1, FORMAT):
            raise ValueError(f"it has format {kind!r}, and this version of loramux reads formats up to {FORMAT}")
        if record["identity"] != self._identity:
            raise ValueError("it belongs to other data, settings or another base")
        data = _read_file(place / TENSORS_FILE)
        if hashlib.sha256(data).hexdigest() != record["sha256"]:
            raise _Damaged(f"{TENSORS_FILE} does not hold what was written")
        numbers = {str(name): float(value) for name, value in record["figures"].items()}
        reported = (
            TrainEvent(TrainEventType(k), step=s, total_steps=n, metrics=m) for k, s, n, m in record.get("told", ())
        )
        return Snapshot(int(record["step"]), load_safetensors(data), numbers, tuple(reported))

    def _write(self, folder: Path, snapshot: Snapshot) -> None:
        if snapshot.copied is not None:
            snapshot.copied.synchronize()
        data = save_safetensors(snapshot.tensors)
        reported = [[e.type.value, e.step, e.total_steps, e.metrics] for e in snapshot.reported[-MAX_REPORTED:]]
        record: dict[str, Any] = {  # names of fields are those of the format, whatever the code calls them
            "format": FORMAT,
            "identity": self._identity,
            "step": snapshot.step,
            "figures": snapshot.numbers,
            "sha256": hashlib.sha256(data).hexdigest(),
            "told": reported,
        }
        record["record_sha256"] = _digest_of(record)
        staged, place = folder / f"tmp-{uuid.uuid4().hex}", folder / checkpoint_name(snapshot.step)
        try:
            with storage_errors("cannot write a checkpoint"):
                staged.mkdir()
                write_durable(staged / TENSORS_FILE, data)
                write_durable(staged / RECORD_FILE, json.dumps(record).encode())
                sync_folder(staged)
                reach("checkpoint.written")
                if place.exists():  # damaged, or the job would have resumed from it
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
        for left in folder.glob("tmp-*"):  # of attempts that were killed
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
    """SHA-256 of a record without the field that holds it."""
    rest = {name: value for name, value in record.items() if name != "record_sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def run_identity(
    command: TrainCommand, tables: Iterable[Sequence[TrainRow]], base: str, held: int
) -> Generator[Held, None, str]:
    """A digest of everything that decides how training goes: rows, settings, stacks and ``init``.

    A checkpoint is used only by a job with the same digest. ``tables`` are the rows to train on and the held-out rows;
    ``base`` names the weights and the precision. Hundreds of thousands of rows take a while, so other jobs have turns
    meanwhile; the job holds ``held`` bytes.
    """
    digest = hashlib.blake2b(digest_size=32)
    stacks = [stack.key for stack in command.stacks]
    init = command.init.digest if command.init else ""
    digest.update(json.dumps([base, asdict(command.spec), stacks, init], sort_keys=True).encode())
    for rows in tables:
        digest.update(f"/{len(rows)}".encode())
        for i, row in enumerate(rows, start=1):
            digest.update(f"/{len(row.input_ids)},{row.stack}/".encode())
            digest.update(array("I", row.input_ids).tobytes() + bytes(row.labels))
            for mark, other in (("-", row.rejected), ("+", row.teacher)):
                if other is not None:
                    digest.update(f"/{len(other.input_ids)}{mark}/".encode())
                    digest.update(array("I", other.input_ids).tobytes() + bytes(other.labels))
            if i % ROWS_PER_TASK == 0:
                yield Held(held)
    return digest.hexdigest()
