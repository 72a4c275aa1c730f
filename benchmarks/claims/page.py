"""The tables of docs/claims.md and of README.md, from the newest results."""

from __future__ import annotations

import json
from collections.abc import Callable
from math import exp
from pathlib import Path
from statistics import mean
from typing import Any

from tools.tables import placed, table

from ..serving import RESULTS, ROOT
from .perplexity import apart
from .said import WAYS, Parts, claims, megabytes, percent, share, summaries

PAGE, README = ROOT / "docs" / "claims.md", ROOT / "README.md"
MISSING = "not measured yet"


def newest(folder: Path = RESULTS) -> dict[str, Any]:
    """What the newest results file says. Raises FileNotFoundError without one."""
    files = sorted(folder.glob("claims-*.json"))
    if not files:
        raise FileNotFoundError(f"no claims-*.json in {folder}; run: make claims")
    found: dict[str, Any] = json.loads(files[-1].read_text())
    return found


def write() -> None:
    """Write both pages anew."""
    parts = newest()["parts"]
    PAGE.write_text(with_tables(PAGE.read_text(), parts))
    README.write_text(with_summary(README.read_text(), parts))


def with_tables(page: str, parts: Parts) -> str:
    """``page`` with all tables anew. Raises ValueError for a page that lacks a place for one."""
    measured = {part.partition("/")[0] for part in parts} | {"claims"}
    made = {
        name: make(parts) if part in measured else f"{MISSING.capitalize()}.\n" for name, (part, make) in TABLES.items()
    }
    return placed(page, made)


def with_summary(page: str, parts: Parts) -> str:
    """``page`` with the table of those claims that were measured."""
    rows = [(claim.said, claim.found) for claim in claims(parts) if claim.found]
    return placed(page, {"claims": table(("It is said", "Found here"), rows)})


def _claims(parts: Parts) -> str:
    rows = [(claim.said, claim.found or MISSING) for claim in claims(parts)]
    return table(("It is said", "Found here"), rows)


def _parameters(parts: Parts) -> str:
    found = parts["parameters"]
    ranks = sorted({row["rank"] for row in found["rows"]})
    by_targets: dict[str, dict[int, int]] = {}
    for row in found["rows"]:
        by_targets.setdefault(row["targets"], {})[row["rank"]] = row["trained"]
    rows = [
        (name, *(f"{trained[rank] / 1e6:.2f} M ({percent(trained[rank] / found['base'], 2)})" for rank in ranks))
        for name, trained in by_targets.items()
    ]
    return table(("Target modules", *(f"rank {rank}" for rank in ranks)), rows)


def _weights(parts: Parts) -> str:
    found = parts["weights"]
    files, servers = found["files"], found["servers"]
    rows = [("file", megabytes(files["bfloat16"]), megabytes(files["nf4"]))]
    told = next(iter(servers.values()))
    rows += [("`loramux info`, weights", megabytes(told["bytes_in_16_bits"]), megabytes(told["nf4_bytes"]))]
    rows += [
        (f"`loramux_vram_bytes`, base, held {held}", "", megabytes(server["resident_base_bytes"]))
        for held, server in servers.items()
    ]
    return table(("", "16 bits", "NF4"), rows)


def _memory(parts: Parts) -> str:
    cases = parts["memory"]
    most = max(case["peak_bytes"] for case in cases)
    rows = [(c["name"], megabytes(c["peak_bytes"]), percent(1 - c["peak_bytes"] / most)) for c in cases]
    return table(("Measured: the default base, 8 rows a step", "Peak", "Less"), rows)


def _shapes(parts: Parts) -> str:
    rows = [
        (
            each["shape"].upper(),
            *(megabytes(each[f"{way}_bytes"]) for way in WAYS),
            percent(1 - each["qlora_bytes"] / each["lora_bytes"]),
            percent(each["lora"] / each["weights"], 2),
        )
        for each in parts["large"]["shapes"]
    ]
    return table(("Computed", "Full", "LoRA-16", "QLoRA", "Less than LoRA-16", "Trained"), rows)


def _plan(parts: Parts) -> str:
    plan = parts["large"]["plan"]
    named = {
        "weights": "weights in NF4",
        "scales": "their scales in float32",
        "graphs": "CUDA graphs, at most",
        "adapters": f"adapters: {plan['adapters_of_rank_16']} of rank 16",
        "kv_cache": f"KV cache: {plan['kv_tokens']:,} tokens",
        "cuda": "CUDA itself, assumed",
        "left": "left for activations and training",
        "job": "of that a job of rank 16",
        "card": "card",
    }
    return table(("A 70B base on one card", "GB"), [(text, f"{plan[key] / 1e9:.1f}") for key, text in named.items()])


def _quality(parts: Parts) -> str:
    rows = [
        (
            parts["tasks"][task],
            WAYS[way],
            f"{found.rate:g}",
            ", ".join(f"{rate:g}" for rate in found.tried),
            f"{found.loss.value:.3f}" + ("" if found.loss.error is None else f" ± {found.loss.error:.3f}"),
            f"{share(found.right)} of {found.of}",
        )
        for task, ways in summaries(parts).items()
        for way, found in ways.items()
    ]
    return table(("Task", "Way", "Best rate", "Rates tried", "Held-out loss", "Right"), rows)


def _perplexity(parts: Parts) -> str:
    rows = []
    for name, found in parts["perplexity"].items():
        more, error = apart(found)
        both = (f"{exp(mean(found[base])):.2f}" for base in ("bfloat16", "nf4"))
        rows.append((name, f"{found['tokens']:,}", *both, f"{more:+.4f} ± {error:.4f}"))
    return table(("Text", "Tokens", "Perplexity, 16 bits", "NF4", "Loss more"), rows)


def _arithmetic(parts: Parts) -> str:
    rows = [
        (
            " + ".join(f"{weight:g} · `{name}`" for name, weight in row["stack"].items()),
            str(row["tokens"]),
            f"{row['largest']:.1e}",
        )
        for row in parts["arithmetic"]
    ]
    return table(("Stack", "Tokens", "Largest difference of a log-probability"), rows)


TABLES: dict[str, tuple[str, Callable[[Parts], str]]] = {
    "claims": ("claims", _claims),
    "parameters": ("parameters", _parameters),
    "weights": ("weights", _weights),
    "memory": ("memory", _memory),
    "shapes": ("large", _shapes),
    "quality": ("quality", _quality),
    "perplexity": ("perplexity", _perplexity),
    "arithmetic": ("arithmetic", _arithmetic),
    "plan": ("large", _plan),
}
"""The part of the results that a table tells of, and what makes the table."""
