"""From a job's data to the command that the engine runs."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..core.backend import EngineInfo
from ..core.errors import invalid, invalid_field
from ..core.jobs import TrainCommand, TrainRow, TrainSpec
from ..core.types import BASE, Stack, StackItem
from ..store.records import JobRecord
from ..store.store import Store
from ..text import TextTokenizer
from ..training.dataset import Dataset, DatasetLimits, Example, load_dataset
from .limits import Limits
from .stacks import active
from .validation import stack_violations

RowStacks = dict[tuple[StackItem, ...], Stack]
"""The frozen stacks that rows name, resolved."""


@dataclass(frozen=True, slots=True)
class JobData:
    """The tokenised data of a job."""

    train: Dataset
    validation: Dataset | None
    train_digest: str
    validation_digest: str

    @property
    def examples(self) -> tuple[Example, ...]:
        return self.train.examples + (self.validation.examples if self.validation else ())

    @property
    def row_stacks(self) -> tuple[tuple[StackItem, ...], ...]:
        """The stacks that rows name, each once, in order."""
        return tuple(dict.fromkeys(e.on_top_of for e in self.examples if e.on_top_of is not None))


def load_data(
    store: Store,
    text: TextTokenizer,
    info: EngineInfo,
    limits: Limits,
    spec: TrainSpec,
    tenant: str,
    dataset_id: str,
    validation_id: str = "",
) -> JobData:
    """Read, check and tokenise a job's data; blocking.

    Raises NOT_FOUND for a dataset, INVALID_ARGUMENT with every bad line (``data[line N]``, ``validation[line N]``).
    """

    def load(identity: str, field: str) -> tuple[Dataset, str]:
        record = store.datasets.get(identity, tenant)
        data = store.blobs.local_path(record.digest).read_bytes()
        found = load_dataset(
            data,
            text,
            max_length=spec.max_length or info.max_context,
            field=field,
            limits=DatasetLimits(max_bytes=limits.max_dataset_bytes),
        )
        _check_row_stacks(found.examples, field)
        return found, record.digest

    train, train_digest = load(dataset_id, "data")
    if validation_id:
        validation, validation_digest = load(validation_id, "validation")
        return JobData(train, validation, train_digest, validation_digest)
    if spec.validation_split:
        kept, held_out = split_rows(train, spec.validation_split, spec.seed)
        return JobData(kept, held_out, train_digest, train_digest)
    return JobData(train, None, train_digest, "")


def split_rows(data: Dataset, share: float, seed: int) -> tuple[Dataset, Dataset]:
    """Hold ``share`` of the rows out, at least one; rows that say the same stay together. Raises INVALID_ARGUMENT.

    The same data, share and seed give the same rows.
    """
    lines: dict[int, list[Example]] = {}
    for example in data.examples:
        lines.setdefault(example.line, []).append(example)
    alike: dict[tuple[tuple[int, ...], ...], list[Example]] = {}
    for examples in lines.values():
        alike.setdefault(tuple(e.row.input_ids for e in examples), []).extend(examples)
    groups = list(alike.values())
    wanted = max(1, round(share * len(groups)))
    if wanted >= len(groups):
        raise invalid_field(
            "validation_split",
            f"{share:g} of {len(groups)} different rows leaves none to train on",
            reason="DATASET_INVALID",
        )
    chosen = {id(groups[i]) for i in random.Random(seed).sample(range(len(groups)), wanted)}
    held = {e.line for group in groups if id(group) in chosen for e in group}
    return _part(data, lambda e: e.line not in held), _part(data, lambda e: e.line in held)


def _part(data: Dataset, keep: Callable[[Example], bool]) -> Dataset:
    """Some of the rows of a dataset, counted anew."""
    examples = tuple(filter(keep, data.examples))
    rows = [e.row for e in examples]
    report = replace(
        data.report,
        rows=len({e.line for e in examples}),
        examples=len(rows),
        tokens=sum(len(r.input_ids) for r in rows),
        trained_tokens=sum(sum(r.labels) for r in rows),
        longest=max(len(r.input_ids) for r in rows),
    )
    return replace(data, examples=examples, report=report)


def build_command(
    job: JobRecord, data: JobData, stacks: Sequence[Stack], row_stacks: RowStacks, info: EngineInfo, output: Path
) -> TrainCommand:
    """What the engine is told: ``stacks`` are the job's own (empty: the bare base), resolved.

    Rows that name no stack take turns over the job's own. The engine would deal them over all stacks of the command;
    so when some rows bring stacks of theirs, the turns are dealt here.
    """
    own = [active(stack) for stack in stacks] or [BASE]
    table = {stack.key: i for i, stack in reversed(list(enumerate(own)))}
    every = list(own)
    for stack in map(active, row_stacks.values()):
        if stack.key not in table:
            table[stack.key] = len(every)
            every.append(stack)

    def rows(examples: Iterable[Example]) -> tuple[TrainRow, ...]:
        if not row_stacks:
            return tuple(example.row for example in examples)
        turns = itertools.cycle(range(len(own)))
        return tuple(
            replace(
                example.row,
                stack=next(turns) if example.on_top_of is None else table[active(row_stacks[example.on_top_of]).key],
            )
            for example in examples
        )

    return TrainCommand(
        job_id=job.id,
        spec=job.request.spec,
        rows=rows(data.train.examples),
        validation=rows(data.validation.examples) if data.validation else (),
        stacks=tuple(every),
        output=str(output),
        base_name=info.base_name,
    )


def _check_row_stacks(examples: Iterable[Example], field: str) -> None:
    first = {e.on_top_of: e.line for e in reversed(tuple(examples)) if e.on_top_of is not None}
    violations = [
        violation
        for stack, line in sorted(first.items(), key=lambda item: item[1])
        for violation in stack_violations(stack, f"{field}[line {line}].on_top_of")
    ]
    if violations:
        raise invalid(violations[:20], reason="DATASET_INVALID")
