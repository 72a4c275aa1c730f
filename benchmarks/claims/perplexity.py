"""The base in NF4 beside its 16-bit weights, by the loss on texts that neither was made from."""

from __future__ import annotations

from statistics import mean, stdev
from typing import Any

from ..serving import ROOT
from .results import Results
from .setting import Setting

DECISIONS = 20
"""Pages of docs/decisions, which do not change once written: the first so many."""
WINDOW, WINDOWS = 256, 8


def texts() -> dict[str, str]:
    """Technical English of this repository, and a licence, which the base may have read."""
    pages = sorted((ROOT / "docs" / "decisions").glob("0[0-9]*.md"))[1 : DECISIONS + 1]
    return {
        "decisions of this project": "\n".join(page.read_text() for page in pages),
        "the Apache licence": (ROOT / "LICENSE").read_text(),
    }


def measure(setting: Setting, results: Results) -> None:
    """Losses by window of both, computed in float32 so that only the weights differ."""
    found: dict[str, dict[str, Any]] = {name: {} for name in texts()}
    for base in ("bfloat16", "nf4"):
        asked = {
            "nf4": setting.base["nf4"],
            "weights": setting.base[base],
            "dtype": "float32",
            "texts": texts(),
            "window": WINDOW,
            "windows": 2 if setting.quick else WINDOWS,
        }
        for line in setting.worker("perplexity", asked):
            found[line["name"]]["tokens"] = line["tokens"]
            found[line["name"]][base] = line["losses"]
    results.put("perplexity", found)


def apart(found: dict[str, Any]) -> tuple[float, float]:
    """How much larger NF4's loss is, and the standard error of that, by windows in pairs."""
    differences = [b - a for a, b in zip(found["bfloat16"], found["nf4"], strict=True)]
    return mean(differences), stdev(differences) / len(differences) ** 0.5
