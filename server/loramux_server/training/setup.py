"""Setting up a job: its frozen adapters, its new one, and how its micro-batches run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ..core.errors import invalid_field
from ..core.jobs import TrainCommand, TrainRow, TrainSpec
from ..core.types import AdapterVersion
from ..data.rows_file import HELD_OUT, NO_STACK, TRAIN, RowTable, assign_stacks, read_rows
from ..host.resources import host_available
from ..lora.bank import AdapterBank, HostAdapter
from ..lora.routed_linear import LinearGroup
from ..lora.slots import Entries
from ..lora.trainable import TrainableAdapter
from ..model.base.context_length import max_context
from ..model.resident import ResidentBase
from ..peft.folder import read_adapter
from ..peft.lora_config import LoraConfig
from ..store.blobs.reader import BlobReader
from .backprop.frozen_model import FrozenModel
from .backprop.layerwise import ActivationPolicy
from .backprop.micro_batch import JobRows, row_logprobs
from .objectives.objective import objective_of
from .objectives.teacher import Teacher
from .run import TrainingRun
from .schedule import Schedule
from .work import PAUSE, Held, Interruptible, Tasks

CACHE_SHARE = 8
"""Activations of frozen layers are kept in at most 1 / CACHE_SHARE of the host's free memory; a teacher's as well."""


def set_up(
    base: ResidentBase, command: TrainCommand, jobs_dir: Path, blobs: BlobReader, activation_memory: int | None
) -> Tasks[TrainingRun]:
    """The job before its first optimizer step. ``activation_memory``: see :class:`~.layerwise.ActivationPolicy`.

    Raises DATA_LOSS (ROWS_DAMAGED) when the rows file below ``jobs_dir`` is not what was written, INVALID_ARGUMENT
    where no linear is adapted or ``init`` does not fit, and what reading an adapter raises.
    """
    tables = (yield from read_rows(jobs_dir, command.rows, PAUSE)).tables
    for table in tables.values():
        _check_rows(table, int(base.model.config.vocab_size), max_context(base.model), len(command.row_stacks))
        if table.teachers:
            _check_teachers(table)
        yield PAUSE
    rows, held_out = (tables[name].assigned(command) for name in (TRAIN, HELD_OUT))
    separate = _separate_current(command) if held_out else None
    bank, stacks = yield from _frozen_stacks(base, blobs, command, separate)
    spec = command.spec
    adapter = new_adapter(base, spec)
    initial = None
    if command.init is not None:
        adapter.load(read_adapter(blobs, command.init, base.modules, base.fingerprint))
        initial = adapter.frozen()
    adapted = adapter.groups | {g for entries in stacks for slot, _ in entries for g in slot.groups}
    policy = ActivationPolicy(base, min((base.groups[g].layer or 0) for g in adapted), activation_memory)
    # Answers of the student's come once each, so nothing of their lower layers is kept.
    cache_bytes = 0 if spec.on_policy else host_available() // CACHE_SHARE
    frozen = FrozenModel(base, bank, stacks, policy, cache_bytes)
    if policy.first_layer:
        whole = FrozenModel(base, bank, stacks, ActivationPolicy(base, 0, activation_memory), 0)
        if not (yield from _same_logprobs(base, frozen, whole, rows[0])):
            frozen = whole
    optimizer = torch.optim.AdamW(
        adapter.flat(),
        lr=spec.learning_rate,
        betas=(spec.beta1, spec.beta2),
        weight_decay=spec.weight_decay,
        fused=True,
    )
    current = None
    if separate is not None:
        slot = bank.slot(separate.digest)
        # The version may adapt lower layers than the job does, so all layers run.
        current = FrozenModel(base, bank, [(*entries, (slot, 1.0)) for entries in stacks], ActivationPolicy(base, 0), 0)
    objective = objective_of(spec)
    teacher = None
    if objective.needs_teacher:
        if not all(table.teachers for table in (rows, held_out) if table):
            raise invalid_field("rows", "have no text for a teacher, which the method distill needs")
        # What the teacher reads is computed once, so nothing of its lower layers is kept.
        model = FrozenModel(base, bank, stacks, ActivationPolicy(base, 0), 0)
        teacher = Teacher(model, host_available() // CACHE_SHARE)
    return TrainingRun(
        base=base,
        command=command,
        rows=rows,
        held_out=held_out,
        objective=objective,
        adapter=adapter,
        frozen=frozen,
        optimizer=optimizer,
        schedule=Schedule(spec, len(rows)),
        stacks=assign_stacks(rows.named_stacks, len(stacks)),
        bank=bank,
        current=current,
        initial=initial,
        teacher=teacher,
    )


def _check_rows(table: RowTable, vocab_size: int, longest: int, stacks: int) -> None:
    """Raise INVALID_ARGUMENT for rows that a pass could not compute: on a GPU, one such id ends the whole engine."""
    ends = np.asarray(table.ends, dtype=np.int64)
    lengths = np.diff(ends, prepend=0)
    if lengths.size and not (lengths.min() >= 1 and lengths.max() <= longest and ends[-1] == len(table.ids)):
        raise invalid_field("rows", f"have texts that are not of 1 to {longest} tokens, the model's context")
    if len(table.ids) and (most := int(np.asarray(table.ids, dtype=np.uint32).max())) >= vocab_size:
        raise invalid_field("rows", f"have token id {most}; ids go from 0 to {vocab_size - 1}")
    named = np.asarray(table.stacks, dtype=np.int32)
    if named.size and not (named.min() >= NO_STACK and named.max() < stacks):
        raise invalid_field("rows", f"name a stack that is none of the {stacks} of the command")


def _check_teachers(table: RowTable) -> None:
    """Raise INVALID_ARGUMENT where a teacher predicts other tokens than the row's loss tokens."""
    ends = np.asarray(table.ends, dtype=np.int64)
    starts = np.concatenate([[0], ends[:-1]])
    texts = np.repeat(np.arange(len(ends)), ends - starts)
    in_loss = np.array(table.labels, dtype=bool)
    in_loss[starts] = False  # nothing comes before a first token
    ids, texts = np.asarray(table.ids, dtype=np.uint32)[in_loss], texts[in_loss]
    rows, taught = texts // 2, texts % 2 == 1
    if not all(np.array_equal(each[~taught], each[taught]) for each in (ids, rows)):
        raise invalid_field("rows", "have a teacher's text with other loss tokens than the row's")


def new_adapter(base: ResidentBase, spec: TrainSpec) -> TrainableAdapter:
    """Freshly initialised LoRA weights for the linears that ``spec`` adapts."""
    return TrainableAdapter(
        base.groups,
        target_modules(spec, base.groups),
        rank=spec.rank,
        alpha=spec.alpha,
        rslora=spec.rslora,
        dropout=spec.dropout,
        generator=torch.Generator().manual_seed(spec.seed),
        device=base.device,
    )


def target_modules(spec: TrainSpec, groups: Sequence[LinearGroup]) -> frozenset[str]:
    """Full names of the linears that ``spec`` adapts. Raises INVALID_ARGUMENT when there is none."""
    names = [name for group in groups for name in group.names]
    config = LoraConfig(
        rank=spec.rank, alpha=spec.alpha, rslora=spec.rslora, target_modules=spec.target_modules, layers=spec.layers
    )
    found = frozenset(config.targets(names))
    if not found:
        raise invalid_field("target_modules", f"{list(spec.target_modules)} names no linear of the base")
    return found


def _separate_current(command: TrainCommand) -> AdapterVersion | None:
    """The current version, where it has to be evaluated separately: if it is not ``init``.

    ``init`` is evaluated in any case, and in the precision of the new adapter, so that an adapter that did not change
    is not better by rounding alone.
    """
    current = command.current
    same = current is not None and command.init is not None and current.digest == command.init.digest
    return None if same else current


def _frozen_stacks(
    base: ResidentBase, blobs: BlobReader, command: TrainCommand, current: AdapterVersion | None
) -> Tasks[tuple[AdapterBank, list[Entries]]]:
    """Read the frozen adapters, one a task, into a bank of the job's own; returns it and the stacks' slots."""
    versions = {e.adapter.digest: e.adapter for stack in command.stacks for e in stack.entries}
    if current is not None:
        versions[current.digest] = current
    bank = AdapterBank(base.groups, sum(v.rank for v in versions.values()), base.device, base.dtype)
    for version in versions.values():
        pairs = read_adapter(blobs, version, base.modules, base.fingerprint, dtype=base.dtype)
        bank.put(HostAdapter(version.digest, pairs))
        yield Held(bank.used_bytes)
    stacks: list[Entries] = [
        tuple((bank.slot(e.adapter.digest), e.weight) for e in stack.entries if e.weight) for stack in command.stacks
    ]
    return bank, stacks


def _same_logprobs(base: ResidentBase, a: FrozenModel, b: FrozenModel, row: TrainRow) -> Interruptible[bool]:
    """Whether two ways through the layers agree: some architectures cannot start at a later layer."""
    row = TrainRow(row.input_ids, (True,) * len(row.input_ids))  # of a prompt alone too
    found = []
    for model in (a, b):
        (logprobs,) = yield from row_logprobs(base, [JobRows(model, [row], [0])])
        found.append(float(logprobs.logprobs))
    return abs(found[0] - found[1]) <= 1e-3 * max(1.0, abs(found[1]))
