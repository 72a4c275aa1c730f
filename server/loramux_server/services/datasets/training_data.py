"""From a job's data to the command that the engine runs."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ...core.backend import EngineInfo
from ...core.errors import Error, invalid_field, is_damage
from ...core.jobs import TrainCommand, TrainRow, TrainSpec
from ...core.notes import Note
from ...core.types import BASE, Stack, StackItem
from ...core.watch import UNWATCHED, Watch
from ...data.dataset import Dataset, DatasetLimits, Example, counted
from ...data.overlap import TrainedAnswers
from ...data.problems import Problems
from ...store.records import JobRecord
from ...store.store import Store
from ...text import TextTokenizer
from ..common.checks import stack_violations
from ..common.limits import Limits
from ..common.stacks import active
from .reader import read_rows
from .replay import draw

RowStacks = dict[tuple[StackItem, ...], Stack]
"""The frozen stacks that rows name, resolved."""


@dataclass(frozen=True, slots=True)
class JobData:
    """The tokenised data of a job."""

    train: Dataset
    validation: Dataset | None
    train_digest: str
    validation_digest: str
    replay: Dataset | None = None
    """General rows, drawn already, that are trained on among ``train``'s."""
    repeats: tuple[Note, ...] = ()
    """How many held-out rows are training rows; ``validation`` has only the others, if there are any."""
    by_heart: bool = False
    """Whether all held-out rows are training rows: their figures tell what was learned by heart, and decide nothing."""

    @property
    def trained(self) -> tuple[Example, ...]:
        """All rows that are trained on."""
        return self.train.examples + (self.replay.examples if self.replay else ())

    @property
    def examples(self) -> tuple[Example, ...]:
        return self.trained + (self.validation.examples if self.validation else ())

    @property
    def notes(self) -> tuple[Note, ...]:
        """What may not be meant about the rows that are trained on and, from other data, held out."""
        apart = self.validation is not None and self.validation_digest != self.train_digest
        held_out = self.validation.report.notes if self.validation and apart else ()
        return (
            self.train.report.notes
            + self.repeats
            + tuple(replace(note, text=f"validation: {note.text}") for note in held_out)
        )

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
    *,
    watch: Watch = UNWATCHED,
) -> JobData:
    """Read, check and tokenise a job's data; blocking, until ``watch`` says that nobody waits.

    Raises NOT_FOUND for a dataset, INVALID_ARGUMENT with every bad line (``data[line N]``, ``validation[line N]``,
    ``replay[line N]``).
    """

    def load(identity: str, field: str, *, held_out: bool) -> tuple[Dataset, str]:
        found, problems, digest = check_data(
            store, text, info, limits, spec, tenant, identity, field, held_out, watch=watch
        )
        problems.check()
        return found, digest

    train, train_digest = load(dataset_id, "data", held_out=spec.validation_split > 0)
    validation, validation_digest = None, ""
    if validation_id:
        validation, validation_digest = load(validation_id, "validation", held_out=True)
    elif spec.validation_split:
        train, validation = split_rows(train, spec.validation_split, spec.seed)
        validation_digest = train_digest
    replay = load_replay(store, text, info, limits, spec, tenant, watch=watch) if spec.replay else None
    for name, other in (("validation", validation), ("replay", replay)):
        if other is not None and other.pairs is not train.pairs:
            what = ("preference pairs", "none") if other.pairs else ("no preference pairs", "some")
            raise invalid_field(name, f"holds {what[0]}, and the data hold {what[1]}: give the same kind")
    repeats: tuple[Note, ...] = ()
    by_heart = False
    if validation is not None:
        others, repeats = without_trained(validation, train.examples + (replay.examples if replay else ()))
        by_heart = not others.examples
        validation = validation if by_heart else others
    return JobData(train, validation, train_digest, validation_digest, replay, repeats, by_heart)


def without_trained(held_out: Dataset, trained: Iterable[Example]) -> tuple[Dataset, tuple[Note, ...]]:
    """The held-out rows that are no training rows, and how many are: what was learned by heart decides nothing."""
    found = TrainedAnswers(example.asked for example in trained).overlap((e.line, e.asked) for e in held_out.examples)
    total = held_out.report.rows
    notes = []
    for code, lines, what in (
        ("HELD_OUT_ROWS_TRAINED_ON", found.rows, "are training rows"),
        ("HELD_OUT_PROMPTS_TRAINED_ON", found.prompts, "ask what training rows ask"),
    ):
        if lines:
            words = f"{len(lines)} of {total} held-out rows {what} (line {min(lines)} first): they decide nothing"
            notes.append(Note(code, words, len(lines), min(lines)))
    return _part(held_out, lambda example: example.line not in found.lines), tuple(notes)


def with_row_stacks(data: JobData, stacks: Mapping[tuple[StackItem, ...], tuple[StackItem, ...]]) -> JobData:
    """``data`` with the stacks that rows name written in another way."""

    def other(part: Dataset | None) -> Dataset | None:
        if part is None:
            return None
        named = (e if e.on_top_of is None else replace(e, on_top_of=stacks[e.on_top_of]) for e in part.examples)
        return replace(part, examples=tuple(named))

    if not stacks:
        return data
    return replace(
        data, train=other(data.train) or data.train, validation=other(data.validation), replay=other(data.replay)
    )


def load_replay(
    store: Store,
    text: TextTokenizer,
    info: EngineInfo,
    limits: Limits,
    spec: TrainSpec,
    tenant: str,
    *,
    watch: Watch = UNWATCHED,
) -> Dataset:
    """The rows that a job of ``spec`` replays; blocking. Raises as :func:`load_data`."""
    found, problems, _ = check_data(store, text, info, limits, spec, tenant, spec.replay, "replay", watch=watch)
    problems.check()
    return draw(found, spec.replay_rows, spec.seed)


def check_data(
    store: Store,
    text: TextTokenizer,
    info: EngineInfo,
    limits: Limits,
    spec: TrainSpec,
    tenant: str,
    dataset_id: str,
    field: str = "data",
    held_out: bool = False,
    *,
    watch: Watch = UNWATCHED,
) -> tuple[Dataset, Problems, str]:
    """The good rows of a stored dataset, what is wrong with the others, and the dataset's digest; blocking.

    Raises NOT_FOUND for the dataset, DATA_LOSS for one that is damaged, INVALID_ARGUMENT for one that is refused as a
    whole.
    """
    record = store.datasets.get(dataset_id, tenant)

    def read() -> tuple[Dataset, Problems]:
        return read_rows(
            store.blobs.local_path(record.digest),
            text,
            min(spec.max_length or info.max_context, limits.max_row_tokens),
            field,
            DatasetLimits(limits.max_dataset_bytes, limits.max_dataset_rows),
            watch,
            held_out=held_out,
            sha256=record.digest,
            chat_template_kwargs=spec.chat_template_kwargs,
        )

    try:
        found, problems = read()
    except Error as error:
        if not is_damage(error):
            raise
        store.datasets.read(record.digest)  # says so, unless only a local copy was damaged
        found, problems = read()
    _check_row_stacks(found.examples, problems)
    return found, problems, record.digest


def split_rows(data: Dataset, share: float, seed: int) -> tuple[Dataset, Dataset]:
    """Hold ``share`` of the rows out, at least one; rows that ask the same stay together. Raises INVALID_ARGUMENT.

    Those of a prompt that many answers follow are kept apart by their answers. The same data, share and seed give the
    same rows.
    """
    taught = TrainedAnswers(example.asked for example in data.examples)
    lines: dict[int, list[Example]] = {}
    for example in data.examples:
        lines.setdefault(example.line, []).append(example)
    alike: dict[bytes, list[Example]] = {}
    for examples in lines.values():
        prompt, whole = examples[0].asked[-1]
        alike.setdefault(whole if taught.is_open(prompt) else prompt, []).extend(examples)
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
    return Dataset(examples, counted(examples, data.report))


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
        rows=rows(data.trained),
        validation=rows(data.validation.examples) if data.validation else (),
        stacks=tuple(every),
        output=str(output),
        base_name=info.base_name,
    )


def _check_row_stacks(examples: Iterable[Example], problems: Problems) -> None:
    first = {e.on_top_of: e.line for e in reversed(tuple(examples)) if e.on_top_of is not None}
    for stack, line in first.items():
        for violation in stack_violations(stack, "on_top_of"):
            problems.add(line, f"{violation.field}: {violation.description}")
