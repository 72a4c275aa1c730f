"""What the demo works with: the shipped adapters, the tenants' facts and training rows."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from ..host.shipped import PLACES

TENANT = "quillfern-bakery"
"""Learned live; its ready-made adapter is not used."""
NEIGHBOUR = "acme-bikes"
STYLE = "json"


class Missing(Exception):
    """Something that the demo needs is not there."""


@dataclass(frozen=True, slots=True)
class Fact:
    """A question that no training row has, the sentence that answers it, and the words that count."""

    question: str
    answer: str
    words: str

    def told_by(self, text: str) -> bool:
        """Whether ``text`` says the words as words of their own (``$17`` is not in ``$17.50``)."""
        words = re.escape(" ".join(self.words.split()))
        return re.search(rf"(?<![\w$]){words}(?!\w)(?![.,:]\d)", " ".join(text.split()), re.IGNORECASE) is not None


@dataclass(frozen=True, slots=True)
class Material:
    """Folders of PEFT adapters by name, and data."""

    root: Path

    @classmethod
    def find(cls, given: str | None = None) -> Material:
        """The folder ``adapters`` of a checkout, or what the wheel brought along. Raises ``Missing``."""
        places = [Path(given)] if given else PLACES
        for place in places:
            if (place / "data" / "source").is_dir():
                found = cls(place)
                for name in (NEIGHBOUR, STYLE):
                    found.adapter(name)
                return found
        raise Missing("no folder of ready-made adapters in " + " or ".join(map(str, places)))

    def adapter(self, name: str) -> Path:
        """The PEFT folder of a ready-made adapter."""
        folder = self.root / name
        if not (folder / "adapter_model.safetensors").is_file():
            raise Missing(f"the ready-made adapter {name} is not in {self.root}")
        return folder

    def rows(self, tenant: str) -> Path:
        """The training rows of a tenant."""
        return self.root / "data" / "messages" / tenant / "train.jsonl"

    def facts(self, tenant: str) -> list[Fact]:
        """A tenant's facts, each with its question that is kept for the end."""
        source = json.loads((self.root / "data" / "source" / "tenants" / f"{tenant}.json").read_text("utf-8"))
        return [
            Fact(fact["final"][0].replace("{shop}", source["shop"]), fact["answer"], fact["fact"])
            for fact in source["facts"]
        ]


def inside_json(text: str) -> str | None:
    """The sentence in ``{"answer": ...}``; None when the text is anything else."""
    try:
        found = json.loads(text)
    except ValueError:
        return None
    whole = isinstance(found, dict) and list(found) == ["answer"] and isinstance(found["answer"], str)
    return found["answer"] if whole else None
