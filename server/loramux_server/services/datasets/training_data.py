"""The rows of a job: read, checked, tokenised, with replay rows drawn and held-out rows set apart."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from ...core.errors import invalid_field
from ...core.jobs import TrainSpec
from ...core.notes import Note
from ...core.types import StackItem
from ...core.watch import UNWATCHED, Watch
from ...data.dataset import Dataset, DatasetLimits, Example, check_dataset, counted
from ...data.overlap import TrainedAnswers
from ...data.problems import Problems
from ...data.teacher_rows import Teaching
from ...store.blobs.files import damaged
from ...text import TextTokenizer
from ..common.checks import stack_violations
from .replay import draw


@dataclass(frozen=True, slots=True)
class Source:
    """The file of a stored dataset, and the SHA-256 that it must have."""

    path: str
    sha256: str

    def read(self) -> bytes:
        """All bytes of the file. Raises DATA_LOSS when they are not what was stored."""
        data = Path(self.path).read_bytes()
        if hashlib.sha256(data).hexdigest() != self.sha256:
            raise damaged(self.sha256)
        return data


@dataclass(frozen=True, slots=True)
class Sources:
    """What the rows of a job with ``spec`` are read from. ``max_length`` is the longest row in tokens."""

    spec: TrainSpec
    max_length: int
    limits: DatasetLimits
    data: Source
    validation: Source | None = None
    replay: Source | None = None


@dataclass(frozen=True, slots=True)
class JobData:
    """The tokenised data of a job."""

    train: Dataset
    validation: Dataset | None
    replay: Dataset | None = None
    """General rows, drawn already, that are trained on among ``train``'s."""
    repeats: tuple[Note, ...] = ()
    """How many held-out rows are training rows; ``validation`` has only the others, if there are any."""
    by_heart: bool = False
    """Whether all held-out rows are training rows: their figures tell what was learned by heart, and decide nothing."""
    apart: bool = False
    """Whether the held-out rows come from other bytes than the rows that are trained on."""

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
        held_out = self.validation.report.notes if self.validation and self.apart else ()
        return (
            self.train.report.notes
            + self.repeats
            + tuple(replace(note, text=f"validation: {note.text}") for note in held_out)
        )

    @property
    def row_stacks(self) -> tuple[tuple[StackItem, ...], ...]:
        """The stacks that rows name, each once, in order."""
        return tuple(dict.fromkeys(e.on_top_of for e in self.examples if e.on_top_of is not None))


def load_data(sources: Sources, text: TextTokenizer, watch: Watch = UNWATCHED) -> JobData:
    """Read, check and tokenise a job's data; blocking, until ``watch`` says that nobody waits.

    Raises INVALID_ARGUMENT with every bad line (``data[line N]``, ``validation[line N]``, ``replay[line N]``),
    DATA_LOSS for a file that is damaged.
    """

    def load(source: Source, field: str, *, held_out: bool) -> Dataset:
        found, problems = check_source(sources, source, field, text, held_out=held_out, watch=watch)
        problems.check()
        return found

    spec, apart = sources.spec, False
    train, validation = load(sources.data, "data", held_out=spec.validation_split > 0), None
    if sources.validation is not None:
        validation = load(sources.validation, "validation", held_out=True)
        apart = sources.validation.sha256 != sources.data.sha256
    elif spec.validation_split:
        train, validation = split_rows(train, spec.validation_split, spec.seed)
    replay = load_replay(sources, text, watch)
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
    return JobData(train, validation, replay, repeats, by_heart, apart)


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


def load_replay(sources: Sources, text: TextTokenizer, watch: Watch = UNWATCHED) -> Dataset | None:
    """The rows that are replayed, if any; blocking. Raises as :func:`load_data`."""
    if sources.replay is None:
        return None
    found, problems = check_source(sources, sources.replay, "replay", text, general=True, watch=watch)
    problems.check()
    return draw(found, sources.spec.replay_rows, sources.spec.seed)


def check_source(
    sources: Sources,
    source: Source,
    field: str,
    text: TextTokenizer,
    *,
    held_out: bool = False,
    general: bool = False,
    watch: Watch = UNWATCHED,
) -> tuple[Dataset, Problems]:
    """The good rows of one of the sources, and what is wrong with the others; blocking.

    In a distillation ``general`` rows have no context but their own: the adapter is to answer them as the base does.

    Raises DATA_LOSS for a file that is damaged, INVALID_ARGUMENT for one that is refused as a whole.
    """
    found, problems = check_dataset(
        source.read(),
        text,
        max_length=sources.max_length,
        field=field,
        limits=sources.limits,
        watch=watch,
        held_out=held_out,
        chat_template_kwargs=sources.spec.chat_template_kwargs,
        teaching=_teaching(sources.spec, general),
    )
    _check_row_stacks(found.examples, problems)
    return found, problems


def _teaching(spec: TrainSpec, general: bool) -> Teaching | None:
    if spec.method != "distill":
        return None
    return Teaching(required=False) if general else Teaching(spec.context)


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


def _check_row_stacks(examples: Iterable[Example], problems: Problems) -> None:
    first = {e.on_top_of: e.line for e in reversed(tuple(examples)) if e.on_top_of is not None}
    for stack, line in first.items():
        for violation in stack_violations(stack, "on_top_of"):
            problems.add(line, f"{violation.field}: {violation.description}")
