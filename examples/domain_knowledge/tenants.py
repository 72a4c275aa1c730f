"""The tenants: facts of adapters/data, asked in four wordings there and in four more here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from examples.common.rows import Row, answer, question, read_rows
from tools.make_data import DATA, load_tenants

TENANTS = ("brindle-ski", "holmwick-library", "pawsley-vets", "ansdale-council")
"""From the fewest facts to the most. Held-out wordings of the first and the last were asked for these figures only."""
MORE = Path(__file__).parent / "data"
_HELD_OUT = ("tune", "final")


@dataclass(frozen=True, slots=True)
class Tenant:
    """What one tenant trains on and is asked, and what a prompt or retrieval gets of it."""

    name: str
    shop: str
    rows: list[Row]
    held_out: list[Row]
    """Two other wordings of every fact, each with what an answer must say (``expect``)."""

    @classmethod
    def read(cls, name: str) -> Tenant:
        """Raises StopIteration for a name that no tenant has."""
        folder = DATA / "messages" / name
        rows = [*read_rows(folder / "train.jsonl"), *read_rows(MORE / f"{name}.jsonl")]
        held_out = next(path for part in _HELD_OUT if (path := folder / f"{part}.jsonl").exists())
        shop = next(tenant.shop for tenant in load_tenants() if tenant.name == name)
        return cls(name, shop, rows, read_rows(held_out))

    @property
    def asked(self) -> list[str]:
        """Every question that is trained on."""
        return [question(row) for row in self.rows]

    @property
    def held_out_questions(self) -> list[str]:
        """Every question that is not."""
        return [question(row) for row in self.held_out]

    @property
    def facts(self) -> int:
        """How many facts the tenant has: each has an answer of its own."""
        return len(set(map(answer, self.rows)))

    @property
    def prompt(self) -> str:
        """All facts, as a system turn."""
        return "\n".join([f"You speak for {self.shop}.", *dict.fromkeys(map(answer, self.rows))])

    @property
    def handbook(self) -> str:
        """The facts in Markdown, each under its first question: what retrieval finds passages in."""
        first = {answer(row): question(row) for row in reversed(self.rows)}
        parts = [f"## {first[told]}\n\n{told}\n" for told in dict.fromkeys(map(answer, self.rows))]
        return "\n".join([f"# {self.shop}\n", *parts])
