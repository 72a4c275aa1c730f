"""What of a command is out of bounds, whoever sent it: its ids, its adapters, and a training job's settings.

The front has checked every field by the same bounds. They are checked again because a command beyond them could raise,
take all memory, or read what is not its own, in a process that many requests share.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import PurePosixPath

from ..core.backend import EngineInfo, ProfileCommand
from ..core.bounds import MAX_STACK, WEIGHT, Bound, too_many
from ..core.errors import FieldViolation, invalid
from ..core.jobs import BOUNDS, TrainCommand
from ..core.types import AdapterVersion, Stack, is_digest
from ..host.files import lies_under

MAX_VIOLATIONS = 20
"""Most fields that a refusal names: it must fit in a frame."""
MAX_NAME = 256
"""Characters of an id, a tenant's or an adapter's name."""
MAX_STACKS = 4096
"""Stacks of one job; callers may name far fewer."""
MAX_RANK = 4096
COUNT = Bound(0, 2**31 - 1)
SECONDS = Bound(0, 1e9)
PROFILE_SECONDS = Bound(0, 3600, above=True)
_JOB_LIMITS = {"max_rank": MAX_RANK, "max_epochs": 1e6, "max_steps": 10**9, "max_batch_size": 2**20}


def refuse(violations: Iterable[FieldViolation]) -> None:
    """Raise INVALID_ARGUMENT that names the fields at fault, if there are any."""
    if found := tuple(islice(violations, MAX_VIOLATIONS)):
        raise invalid(found)


def name_violations(field: str, text: str) -> Iterator[FieldViolation]:
    """An id or a name must not be empty, and has a limit in characters."""
    if not text:
        yield FieldViolation(field, "is empty")
    yield from too_many(field, len(text), MAX_NAME, "characters")


def token_violations(field: str, ids: Sequence[int], vocab_size: int) -> Iterator[FieldViolation]:
    """The first token id that the model does not have."""
    if ids and not (min(ids) >= 0 and max(ids) < vocab_size):
        at, bad = next((i, t) for i, t in enumerate(ids) if not 0 <= t < vocab_size)
        yield FieldViolation(f"{field}[{at}]", f"is {bad}; ids go from 0 to {vocab_size - 1}")


def adapter_violations(field: str, adapter: AdapterVersion) -> Iterator[FieldViolation]:
    """An adapter version must be named by a digest and have a rank."""
    if not is_digest(adapter.digest):
        yield FieldViolation(f"{field}.digest", f"is {adapter.digest[:80]!a}; it must be 64 hexadecimal digits")
    yield from Bound(1, MAX_RANK).violations(f"{field}.rank", adapter.rank)
    yield from COUNT.violations(f"{field}.version", adapter.version)
    yield from too_many(f"{field}.name", len(adapter.name), MAX_NAME, "characters")


def stack_violations(field: str, stack: Stack) -> Iterator[FieldViolation]:
    """A stack has few entries, each with another adapter version and a weight within bounds."""
    yield from too_many(field, len(stack.entries), MAX_STACK, "entries")
    if len({e.adapter.digest for e in stack.entries}) < len(stack.entries):
        yield FieldViolation(field, "has an adapter version twice; add its weights up instead")
    for i, entry in enumerate(stack.entries[:MAX_STACK]):
        yield from adapter_violations(f"{field}[{i}].adapter", entry.adapter)
        yield from WEIGHT.violations(f"{field}[{i}].weight", entry.weight)


def train_violations(
    command: TrainCommand, info: EngineInfo, folders: Sequence[str] | None
) -> Iterator[FieldViolation]:
    """Everything of a job that is out of bounds. ``folders``: see ``EngineSettings.folders``."""
    limits = {**_JOB_LIMITS, "max_context": info.max_context}
    for name, bound in BOUNDS.items():
        value = getattr(command.spec, name)
        if value is not None:
            yield from bound.within(limits).violations(f"spec.{name}", value)
    layers = Bound(0, info.num_layers - 1)
    for i, layer in enumerate((command.spec.layers or ())[:MAX_NAME]):
        yield from layers.violations(f"spec.layers[{i}]", layer)
    yield from too_many("spec.target_modules", len(command.spec.target_modules), len(info.linear_modules), "names")
    yield from _file_violations(command, folders)
    yield from _frozen_violations(command)
    yield from COUNT.violations("checkpoint_every", command.checkpoint_every)
    yield from SECONDS.violations("checkpoint_seconds", command.checkpoint_seconds)
    for field, path in (("output", command.output), ("checkpoint_dir", command.checkpoint_dir)):
        if path and not lies_under(path, folders):
            yield FieldViolation(field, f"is {path[:200]!a}, which is in none of the folders that jobs may write to")


def profile_violations(command: ProfileCommand, folders: Sequence[str] | None) -> Iterator[FieldViolation]:
    """Everything of a profile that is out of bounds."""
    yield from PROFILE_SECONDS.violations("seconds", command.seconds)
    yield from Bound(2, COUNT.high).violations("most_events", command.most_events)
    if not lies_under(command.output, folders):
        path = command.output[:200]
        yield FieldViolation("output", f"is {path!a}, which is in none of the folders that may be written to")


def _file_violations(command: TrainCommand, folders: Sequence[str] | None) -> Iterator[FieldViolation]:
    """The rows file lies below the folder of jobs: this engine's, or that of the server that sends the command."""
    path = PurePosixPath(command.rows.path)
    elsewhere = path.is_absolute() and not lies_under(command.rows.path, folders)
    if elsewhere or ".." in path.parts or "\0" in command.rows.path or not path.name:
        yield FieldViolation("rows.path", f"is {command.rows.path[:200]!a}; it must lie below the folder of jobs")
    if not is_digest(command.rows.sha256):
        yield FieldViolation("rows.sha256", "must be 64 hexadecimal digits")


def _frozen_violations(command: TrainCommand) -> Iterator[FieldViolation]:
    """The frozen stacks, and the indices into them."""
    stacks = len(command.stacks)
    yield from too_many("stacks", stacks, MAX_STACKS, "stacks")
    yield from Bound(1, stacks).violations("own_stacks", command.own_stacks)
    for i, stack in enumerate(command.stacks[:MAX_STACKS]):
        yield from stack_violations(f"stacks[{i}]", stack)
    if command.row_stacks and not (min(command.row_stacks) >= 0 and max(command.row_stacks) < stacks):
        yield FieldViolation("row_stacks", f"has an index outside of the {stacks} stacks")
    for field, version in (("init", command.init), ("current", command.current)):
        if version is not None:
            yield from adapter_violations(field, version)
    if command.stored is not None:
        yield from COUNT.violations("stored.step", command.stored.step)
        yield from COUNT.violations("stored.evaluation", command.stored.evaluation)
