"""The model card (README.md) of an adapter that was merged from others."""

from __future__ import annotations

import json
from collections.abc import Mapping

from ...core.backend import EngineInfo
from ...core.compose import ComposeMethod
from ...store.records import Composition

_MEANING = {
    ComposeMethod.CAT: "The ranks of the parts stand side by side: the delta is the stack's sum, up to rounding.",
    ComposeMethod.SVD: "The delta is the best approximation of the stack's sum at this rank.",
    ComposeMethod.LINEAR: "Weighted sums of the A and of the B factors apart: an approximation with cross terms.",
    ComposeMethod.TIES: "TIES merging of the A and of the B factors apart: an approximation.",
    ComposeMethod.DARE_TIES: "DARE with TIES merging of the A and of the B factors apart: an approximation.",
    ComposeMethod.MAGNITUDE_PRUNE: "Sums of the largest values of the A and of the B factors apart: an approximation.",
}


def render_composed_card(name: str, info: EngineInfo, composed: Composition, metadata: Mapping[str, str]) -> str:
    """The card as Markdown with the front matter that model hubs read."""
    lines = [
        "---",
        f"base_model: {json.dumps(info.base_name)}",
        "library_name: peft",
        "pipeline_tag: text-generation",
        "tags: [lora, nf4, loramux, merge]",
        "---",
        "",
        f"# {name}",
        "",
        f"A LoRA adapter for `{info.base_name}`, merged by loramux with method `{composed.method}`.",
        _MEANING[ComposeMethod(composed.method)],
        "",
        "| part | weight |",
        "|---|---|",
        *(f"| `{item.adapter}` | {item.weight:g} |" for item in composed.stack),
        "",
        f"- Relative error of the summed delta (Frobenius norm): {composed.error:.6g}",
        *(f"- {key}: {value}" for key, value in composed.settings.items()),
        f"- Base fingerprint: `{info.base_fingerprint}`",
    ]
    # JSON keeps whatever the notes hold within its line.
    lines += [f"- {json.dumps(key)}: {json.dumps(value)}" for key, value in sorted(metadata.items())]
    return "\n".join(lines) + "\n"
