"""Peaks of memory while the same rows are trained on in five ways, each in a process of its own."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from .results import Results
from .setting import Setting
from .tasks import facts

STEPS = 2
"""The second one has the optimizer's moments beside the gradients: the peak."""
SPEC = {"rank": 16, "alpha": 32.0, "batch_size": 8}


@dataclass(frozen=True, slots=True)
class Case:
    """``loop``: a plain loop over transformers and PEFT, or ``loramux``: its trainer."""

    name: str
    loop: str
    way: str
    weights: str
    dtype: str


CASES = (
    Case("full fine-tuning in float32", "plain", "full", "bfloat16", "float32"),
    Case("LoRA on the base in bfloat16", "plain", "lora", "bfloat16", "bfloat16"),
    Case("QLoRA as a job of loramux", "loramux", "lora", "nf4", "bfloat16"),
    Case("QLoRA with PEFT and bitsandbytes", "plain", "lora", "nf4", "bfloat16"),
    Case("full fine-tuning, all of it in bfloat16", "plain", "full", "bfloat16", "bfloat16"),
)


def measure(setting: Setting, results: Results) -> None:
    """Train a few steps in each way that no earlier run measured."""
    rows = facts().write(setting.material / "rows")["train"]
    done = {case["name"] for case in results.list("memory")}
    for case in CASES:
        if case.name in done:
            continue
        asked = {
            "case": asdict(case),
            "weights": setting.base[case.weights],
            "nf4": setting.base["nf4"],
            "rows": rows,
            "spec": {**SPEC, "max_steps": STEPS},
            "threads": setting.threads,
        }
        (found,) = setting.worker("memory", asked)
        results.append("memory", {**asdict(case), **found})
