"""What is said of QLoRA, and what was found: a line for each claim, in words."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .perplexity import apart
from .search import Mean, Summary, read, summarise

Parts = Mapping[str, Any]
WAYS = {"full": "full fine-tuning", "lora": "LoRA on 16 bits", "qlora": "QLoRA, a job of loramux"}
NEAR = 0.02
"""Of the held-out answers: what counts as almost the quality of another way."""


@dataclass(frozen=True, slots=True)
class Claim:
    """``found`` is empty where the part was not measured."""

    name: str
    said: str
    found: str


def claims(parts: Parts) -> list[Claim]:
    """All claims in the order of the page."""
    measured = {part.partition("/")[0] for part in parts}
    return [Claim(name, said, find(parts) if name in measured else "") for name, said, find in CLAIMS]


def megabytes(count: float) -> str:
    """Bytes in MB, or in GB from a thousand of these on."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def percent(value: float, digits: int = 0) -> str:
    """A share in percent."""
    return f"{100 * value:.{digits}f} %"


def share(mean: Mean) -> str:
    """A share in percent with its standard error."""
    return f"{100 * mean.value:.0f}" + ("" if mean.error is None else f" ± {100 * mean.error:.0f}") + " %"


def summaries(parts: Parts) -> dict[str, dict[str, Summary]]:
    """The ways by task: those of a task all of whose ways were measured."""
    found: dict[str, dict[str, Summary]] = {}
    for part, runs in parts.items():
        kind, _, rest = part.partition("/")
        if kind == "quality":
            task, _, way = rest.partition("/")
            if any(run["right"] is not None for run in runs):
                found.setdefault(task, {})[way] = summarise(read(runs))
    return {task: {way: ways[way] for way in WAYS} for task, ways in found.items() if ways.keys() == WAYS.keys()}


def _parameters(parts: Parts) -> str:
    found = parts["parameters"]
    shares = {(row["targets"], row["rank"]): row["trained"] / found["base"] for row in found["rows"]}
    larger = "".join(
        f", {percent(each['lora'] / each['weights'], 2)} at {each['shape'].upper()}"
        for each in parts.get("large", {}).get("shapes", ())
    )
    small, usual = shares["q_proj, v_proj", 8], shares["all linears", 16]
    return (
        f"rank 8 on q and v {percent(small, 2)}; rank 16 on all linears {percent(usual, 1)} of this small base{larger}"
    )


def _weights(parts: Parts) -> str:
    files = parts["weights"]["files"]
    saved = 1 - files["nf4"] / files["bfloat16"]
    plan = parts.get("large", {}).get("plan")
    larger = f"; a 70B base {percent(1 - plan['weights'] / plan['weights_16_bit'])}" if plan else ""
    return f"{megabytes(files['bfloat16'])} become {megabytes(files['nf4'])}, {percent(saved)} less{larger}"


def _memory(parts: Parts) -> str:
    peaks = {case["name"]: case["peak_bytes"] for case in parts["memory"]}
    names = {
        "full fine-tuning in float32": "full",
        "LoRA on the base in bfloat16": "LoRA-16",
        "QLoRA as a job of loramux": "a job here",
    }
    return ", ".join(f"{short} {megabytes(peaks[name])}" for name, short in names.items() if name in peaks)


def _quality(parts: Parts) -> str:
    texts = []
    for task, ways in summaries(parts).items():
        best = max(summary.right.value for way, summary in ways.items() if way != "qlora")
        gap = ways["qlora"].right.value - best
        verdict = "within 2 points" if gap >= -NEAR else f"{-100 * gap:.0f} points less than the best"
        texts.append(f"{task}: {', '.join(f'{WAYS[w]} {share(s.right)}' for w, s in ways.items())}: {verdict}")
    return "; ".join(texts)


def _perplexity(parts: Parts) -> str:
    texts = []
    for name, found in parts["perplexity"].items():
        more, error = apart(found)
        texts.append(f"{name}: loss {more:+.3f} ± {error:.3f}")
    return "; ".join(texts)


def _arithmetic(parts: Parts) -> str:
    rows = parts["arithmetic"]
    largest = max(row["largest"] for row in rows)
    tokens = sum(row["tokens"] for row in rows)
    return f"{len(rows)} stacks, {tokens} tokens: log-probabilities differ by {largest:.0e} at most, in float32"


def _large(parts: Parts) -> str:
    plan = parts["large"]["plan"]
    return (
        f"computed: weights {megabytes(plan['weights'] + plan['scales'])}, {plan['adapters_of_rank_16']} adapters of "
        f"rank 16, {plan['kv_tokens']:,} tokens of KV cache, {megabytes(plan['left'])} left to train in"
    )


CLAIMS: tuple[tuple[str, str, Callable[[Parts], str]], ...] = (
    ("parameters", "under 1 % of the parameters are trained", _parameters),
    ("weights", "the base takes 60 to 70 % less memory", _weights),
    ("memory", "training takes a fraction of the memory", _memory),
    ("quality", "almost the quality of full fine-tuning", _quality),
    ("perplexity", "NF4 costs the base almost nothing", _perplexity),
    ("arithmetic", "adapters add up exactly", _arithmetic),
    ("large", "a 70B base on one card of 80 GB", _large),
)
