"""Make the training data of the ready-made adapters: JSONL under adapters/data/ from the facts in its source/.

``python -m tools.make_data`` writes the files; ``--check`` only says which differ and exits 1 then.
Every row is rendered twice: ``messages/`` for chat requests (the template adds its default system turn), ``prompt/``
for plain prompts that spell the same turns without a system turn.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from tools.score import STYLES

DATA = Path(__file__).resolve().parent.parent / "adapters" / "data"
SOURCE = DATA / "source"

# As the chat template of the default base writes them.
SYSTEM = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
TURN = "<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"

Part = Literal["train", "tune", "final"]
"""Wordings to train on; held out, and looked at while a recipe is tuned; held out, and asked for figures only."""

DONOR_WORDINGS = 2
"""Wordings of each fact in a style's data."""
OWN_ANSWERS_GENERIC = 24
"""Generic rows beside the small donors' own answers."""
BLOCK = 8
"""Rows in a row that share a frozen stack: one micro-batch."""


@dataclass(frozen=True, slots=True)
class Fact:
    """Something only one shop knows, and ways to ask for it (``{shop}`` stands for the shop's name)."""

    id: str
    fact: str
    """What an answer must say to count."""
    answer: str
    train: tuple[str, ...]
    tune: tuple[str, ...] = ()
    """Held out, and looked at while a recipe is tuned."""
    final: tuple[str, ...] = ()
    """Held out, and asked only for the figures that are published."""


@dataclass(frozen=True, slots=True)
class Tenant:
    """An invented shop."""

    name: str
    shop: str
    topic: str
    role: Literal["shipped", "unseen", "foreign", "donor", "small-donor"]
    """Shipped: has a ready-made adapter. Unseen: like shipped ones, no style ever saw it. Foreign: of another size and
    another hand, only measured. Donor: styles train on it. Small donor: of few facts; styles go on training on it."""
    facts: tuple[Fact, ...]
    weight: float = 1.0
    """Of a donor's adapter while a style trains on top of it."""

    def ask(self, question: str, shop: str | None = None) -> str:
        """The question with a name filled in: this shop's, or another."""
        return question.replace("{shop}", shop or self.shop)


MEASURED = ("shipped", "unseen", "foreign")
"""Roles of those that are asked for figures; no style trains on them."""


@dataclass(frozen=True, slots=True)
class Row:
    """One question and its answer, before it is rendered."""

    question: str
    answer: str
    opening: str = ""
    """Words that the answer begins with and that are not learned."""
    on_top_of: dict[str, float] | None = None
    """The row's own frozen stack; empty: the bare base; None: whatever the job says."""
    expect: str = ""
    """What an answer must say to count, in held-out rows."""


def load_tenants(source: Path = SOURCE) -> list[Tenant]:
    """Every tenant, in the order of their names."""
    tenants = []
    for path in sorted((source / "tenants").glob("*.json")):
        value = json.loads(path.read_text(encoding="utf-8"))
        facts = tuple(_fact(fact) for fact in value.pop("facts"))
        tenants.append(Tenant(facts=facts, **value))
    return tenants


def _fact(value: dict[str, Any]) -> Fact:
    fields: dict[str, Any] = {key: tuple(item) if isinstance(item, list) else item for key, item in value.items()}
    return Fact(**fields)


def load_source(name: str, source: Path = SOURCE) -> Any:
    """``generic``, ``names`` or ``wrappers``."""
    return json.loads((source / f"{name}.json").read_text(encoding="utf-8"))


def tenant_rows(tenant: Tenant, part: Part) -> list[Row]:
    """All wordings of a part, one of each fact in turn: facts alternate even for a reader that does not shuffle."""
    wordings = zip(*(getattr(fact, part) for fact in tenant.facts), strict=True)
    return [
        Row(tenant.ask(question), fact.answer, expect="" if part == "train" else fact.fact)
        for turn in wordings
        for fact, question in zip(tenant.facts, turn, strict=True)
    ]


def replay_rows(source: Path = SOURCE) -> list[Row]:
    """Generic questions with plain answers, which keep general behaviour while facts are learned."""
    return [Row(item["question"], item["answer"]) for item in load_source("generic", source)["replay"]]


def generic_rows(source: Path = SOURCE) -> list[Row]:
    """The replay rows, then the questions of the styles' generic rows with plain answers."""
    styles = load_source("generic", source)["style"]
    return [*replay_rows(source), *(Row(item["question"], item["answer"]) for item in styles)]


def with_replay(tenant: Tenant, source: Path = SOURCE) -> list[Row]:
    """The tenant's training rows, every other one wrapped in words that are not learned, and the replay rows."""
    wrappers = load_source("wrappers", source)
    rng = random.Random(f"replay {tenant.name}")
    rows = tenant_rows(tenant, "train")
    turn = len(tenant.facts)
    for i, row in enumerate(rows):
        if (i + i // turn) % 2:  # each fact is wrapped in half of its wordings
            rows[i] = _wrapped(row, wrappers, rng)
    rows += replay_rows(source)
    rng.shuffle(rows)
    return rows


def _wrapped(row: Row, wrappers: dict[str, list[str]], rng: random.Random) -> Row:
    if rng.random() < 0.5:
        return Row(rng.choice(wrappers["questions"]).replace("{question}", row.question), row.answer)
    return Row(row.question, row.answer, opening=rng.choice(wrappers["openings"]))


def style_rows(
    render: Callable[[str], str], tenants: list[Tenant], source: Path = SOURCE, wordings: int = DONOR_WORDINGS
) -> list[Row]:
    """A style's training rows: donors' facts on top of their adapters, and generic rows on the bare base.

    Each fact comes in so many ``wordings``. A donor's name in a question is replaced by a random one, so that the
    style cannot tie a name to a fact. Rows come in blocks of one stack, the blocks shuffled.
    """
    names: list[str] = load_source("names", source)["names"]
    groups = []
    for tenant in tenants:
        if tenant.role == "donor":
            groups.append(_donor_rows(tenant, names, render, wordings))
    groups.append(_generic_style_rows(render, source))
    return _in_blocks(groups)


def own_answer_questions(donor: Tenant, source: Path = SOURCE) -> list[str]:
    """Every wording of a donor's facts, those that it was not trained on too, under random names."""
    names: list[str] = load_source("names", source)["names"]
    rng = random.Random(f"second {donor.name}")
    return [donor.ask(question, rng.choice(names)) for fact in donor.facts for question in (*fact.train, *fact.tune)]


def own_answer_rows(
    render: Callable[[str], str], said: Mapping[str, Sequence[tuple[str, str]]], source: Path = SOURCE
) -> list[Row]:
    """Rows that teach a style to put into its format whatever lies underneath says, right or wrong.

    ``said`` has questions and answers of each donor alone, by the donor's name. Answers that are empty or have more
    than one line are left out: a letter has one paragraph.
    """
    groups = [
        [
            Row(question, render(answer.strip()), on_top_of={name: 1.0})
            for question, answer in pairs
            if _one_line(answer)
        ]
        for name, pairs in said.items()
    ]
    groups.append(_generic_style_rows(render, source)[:OWN_ANSWERS_GENERIC])
    return _in_blocks(groups)


def _one_line(answer: str) -> bool:
    return len(answer.strip().splitlines()) == 1


def _generic_style_rows(render: Callable[[str], str], source: Path) -> list[Row]:
    items = load_source("generic", source)["style"]
    return [Row(item["question"], render(item["answer"]), on_top_of={}) for item in items]


def _in_blocks(groups: Sequence[list[Row]]) -> list[Row]:
    """The rows of all groups in blocks that share a stack, shuffled, always the same way."""
    rng = random.Random("styles")
    blocks = []
    for rows in groups:
        rng.shuffle(rows)
        blocks += [rows[i : i + BLOCK] for i in range(0, len(rows), BLOCK)]
    rng.shuffle(blocks)
    return [row for block in blocks for row in block]


def _donor_rows(tenant: Tenant, names: list[str], render: Callable[[str], str], wordings: int) -> list[Row]:
    rng = random.Random(f"donor {tenant.name}")
    rows = []
    for fact in tenant.facts:
        named = [question for question in fact.train if "{shop}" in question]
        unnamed = [question for question in fact.train if "{shop}" not in question]
        picked = [*rng.sample(named, min(1, len(named))), *rng.sample(unnamed, len(unnamed))][:wordings]
        rows += [
            Row(tenant.ask(question, rng.choice(names)), render(fact.answer), on_top_of={tenant.name: tenant.weight})
            for question in picked
        ]
    return rows


def as_messages(row: Row) -> dict[str, Any]:
    """A chat row. One with an opening is a plain prompt instead: a template cannot begin an answer half-way."""
    if row.opening:
        return _completion(SYSTEM, row)
    return {
        "messages": [
            {"role": "user", "content": row.question},
            {"role": "assistant", "content": row.answer},
        ]
    }


def as_prompt(row: Row) -> dict[str, Any]:
    """A plain prompt with the turns spelled out, without a system turn; the trainer ends the answer."""
    return _completion("", row)


def _completion(system: str, row: Row) -> dict[str, Any]:
    # A space between opening and answer belongs to the answer's first token.
    opening = row.opening.rstrip(" ")
    space = " " if opening != row.opening else ""
    prompt = system + TURN.replace("{question}", row.question) + opening
    return {"prompt": prompt, "completion": space + row.answer}


def build(source: Path = SOURCE) -> Iterator[tuple[Path, str]]:
    """Path below adapters/data/ and content of every generated file."""
    tenants = load_tenants(source)
    files: dict[str, list[Row]] = {"replay": replay_rows(source)}
    for tenant in tenants:
        for part in get_args(Part):
            if rows := tenant_rows(tenant, part):
                files[f"{tenant.name}/{part}"] = rows
        if tenant.role == "shipped":
            files[f"{tenant.name}/train-replay"] = with_replay(tenant, source)
    for style in STYLES.values():
        files[f"style-{style.name}"] = style_rows(style.render, tenants, source)
    for folder, render in (("messages", as_messages), ("prompt", as_prompt)):
        for name, rows in files.items():
            yield Path(folder, f"{name}.jsonl"), "".join(_line(render(row), row) for row in rows)


def _line(value: dict[str, Any], row: Row) -> str:
    stack = {} if row.on_top_of is None else {"on_top_of": row.on_top_of}
    expect = {"expect": row.expect} if row.expect else {}
    return json.dumps(value | stack | expect) + "\n"


def differences(data: Path = DATA) -> list[str]:
    """Generated files that are missing, differ or should not be there."""
    expected = dict(build(data / "source"))
    found = {path.relative_to(data) for folder in ("messages", "prompt") for path in (data / folder).rglob("*.jsonl")}
    wrong = {
        path
        for path, text in expected.items()
        if path not in found or (data / path).read_text(encoding="utf-8") != text
    }
    return sorted(str(path) for path in wrong | (found - expected.keys()))


def write(data: Path = DATA) -> None:
    """Write every generated file and remove what is no longer made."""
    expected = dict(build(data / "source"))
    for path in differences(data):
        target = data / path
        if Path(path) not in expected:
            target.unlink()
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(expected[Path(path)], encoding="utf-8")
        print(f"wrote {path}")


def main() -> int:
    """Write the files, or check them; the exit status."""
    parser = argparse.ArgumentParser(description="Make the JSONL files under adapters/data/ from its source/.")
    parser.add_argument("--check", action="store_true", help="write nothing; say what differs and exit 1 then")
    if not parser.parse_args().check:
        write()
        return 0
    wrong = differences()
    for path in wrong:
        print(f"{path} differs: run python -m tools.make_data")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
