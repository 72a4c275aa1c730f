"""The model card (README.md) that goes into every adapter trained here."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, fields

from loramux.comparison import judged, read_comparison, without_comparison
from loramux.progress import sparkline

from ....core.jobs import JobRequest, JudgedRow
from ....core.types import StackItem
from ....store.records import JobRecord
from .curve import CURVE_FILE, Curve

_HIGHLIGHTS = {
    "loss": "Training loss, last step",
    "eval_loss": "Held-out loss",
    "base_loss": "Held-out loss without the adapter",
    "init_loss": "Held-out loss of the version that it goes on from",
    "current_loss": "Held-out loss of the version before",
    "eval_accuracy": "Held-out answers that are right",
    "eval_exact_match": "Held-out answers that are the expected text",
    "eval_token_accuracy": "Held-out token accuracy",
    "base_token_accuracy": "Held-out token accuracy without the adapter",
    "eval_teacher_agreement": "Held-out tokens at which the likeliest is the teacher's",
    "base_teacher_agreement": "The same without the adapter",
    "trained_tokens": "Tokens trained on",
}

MAX_PROMPT = 2000
"""Characters that are shown of the prompt that an adapter was compared with, and of what its teacher read."""


@dataclass(frozen=True, slots=True)
class CardFacts:
    """All that a card says. ``metrics`` are the job's last ones by name."""

    job: JobRecord
    base_name: str
    base_fingerprint: str
    dataset_digest: str
    dataset_rows: int
    validation_digest: str = ""
    validation_rows: int = 0
    on_top_of: tuple[tuple[StackItem, ...], ...] = ()
    steps: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    gate_result: str = ""
    """Why the version was not promoted; empty: it was."""
    answers: tuple[JudgedRow, ...] = ()
    curve: Curve = field(default_factory=dict)
    asked_with: str = ""
    """``messages`` or ``prompt``; empty: not known."""

    @property
    def request(self) -> JobRequest:
        return self.job.request


def render_card(facts: CardFacts) -> str:
    """The card as Markdown with the front matter that model hubs read."""
    sections = [
        _front_matter(facts),
        f"# {facts.request.name}\n\nA LoRA adapter for `{facts.base_name}`, trained by loramux on the NF4 base that"
        " serves it.",
        "## Data\n\n" + _data(facts),
        *_context(facts),
        "## Result\n\n" + _result(facts),
        *_compared(facts),
        *_answers(facts),
        *(["## Course of the training\n\n" + _course(facts.curve)] if facts.curve else []),
        "## Use\n\nWith loramux:\n\n" + _loramux_snippet(facts) + "\n\nWith PEFT:\n\n" + _peft_snippet(facts),
        "## Settings\n\n" + _settings(facts),
    ]
    if facts.request.metadata:
        rows = [(f"`{_cell(k)}`", _cell(v)) for k, v in sorted(facts.request.metadata.items())]
        sections.append("## Notes of its maker\n\n" + _table(("key", "value"), rows))
    return "\n\n".join(sections) + "\n"


def _front_matter(facts: CardFacts) -> str:
    # JSON strings are YAML strings, whatever they hold.
    return "\n".join(
        [
            "---",
            f"base_model: {json.dumps(facts.base_name)}",
            "library_name: peft",
            "pipeline_tag: text-generation",
            "tags: [lora, nf4, loramux]",
            "---",
        ]
    )


def _data(facts: CardFacts) -> str:
    lines = [f"- Training rows: {facts.dataset_rows}, SHA-256 `{facts.dataset_digest}`"]
    if facts.validation_rows:
        lines.append(f"- Held-out rows: {facts.validation_rows}, SHA-256 `{facts.validation_digest}`")
    else:
        lines.append("- Held-out rows: none, so the figures below say nothing about unseen questions")
    lines.append(f"- Base: `{facts.base_name}`, fingerprint `{facts.base_fingerprint}`")
    if facts.request.init_from:
        lines.append(f"- Goes on from `{facts.request.init_from}`")
    if facts.on_top_of:
        lines.append(
            "- Trained on top of these frozen stacks, rows taking turns: "
            + "; ".join(_stack(stack) for stack in facts.on_top_of)
        )
    if (spec := facts.request.spec).method == "distill":
        digest = hashlib.sha256(spec.context.encode()).hexdigest()
        each = f"with a context of SHA-256 `{digest}`" if spec.context else "with the contexts of the rows"
        lines.append(f"- Teacher: the base {each}, which the adapter answers without")
        if spec.on_policy:
            lines.append("- Answers of the training rows: the adapter's own, sampled in each step (on-policy)")
    lines += (f"- Note: {_cell(note.text)}" for note in facts.job.notes)
    return "\n".join(lines)


def _result(facts: CardFacts) -> str:
    metrics = without_comparison(facts.metrics)
    known = [(title, metrics[key]) for key, title in _HIGHLIGHTS.items() if key in metrics]
    other = [(f"`{key}`", value) for key, value in sorted(metrics.items()) if key not in _HIGHLIGHTS]
    rows = [(title, f"{value:.6g}") for title, value in known + other]
    gate = ""
    if facts.request.gate:
        outcome = f"not passed: {facts.gate_result}; kept as a candidate" if facts.gate_result else "passed"
        gate = f" Gate `{facts.request.gate}`: {outcome}."
    return (
        _table(("figure", "value"), [("Optimiser steps", str(facts.steps)), *rows]) + f"\n\nJob `{facts.job.id}`.{gate}"
    )


def _compared(facts: CardFacts) -> list[str]:
    """Fine-tuning against prompting and retrieval, where that was measured: verdict, metrics, prompt and documents."""
    found = read_comparison(facts.metrics)
    if found is None:
        return []
    table = _table(("on the same held-out rows", *found.sides), found.rows())
    request = facts.request
    parts = [found.verdict, table]
    if text := request.compare_prompt:
        parts.append(f"The prompt:\n\n> {_shortened(text)}")
    if request.compare_documents:
        parts.append(f"Retrieval: up to {request.compare_top_k} passages of documents `{request.compare_documents}`.")
    others = (("a prompt", text), ("retrieval", request.compare_documents))
    title = " and ".join(name for name, given in others if given)
    return [f"## Against {title}", *parts]


def _context(facts: CardFacts) -> list[str]:
    """What the teacher of a distillation read before every row."""
    text = facts.request.spec.context
    return [f"## What the teacher read\n\n> {_shortened(text)}"] if text else []


def _shortened(text: str) -> str:
    return _cell(text if len(text) <= MAX_PROMPT else text[:MAX_PROMPT] + " ...")


def _answers(facts: CardFacts) -> list[str]:
    """How answers were judged, and some of them side by side."""
    if not (words := judged(facts.metrics)):
        return []
    sides = list(facts.answers[0].answers) if facts.answers else []
    rows = []
    for row in facts.answers:
        said = (f"{_cell(answer.text)} ({'right' if answer.right else 'wrong'})" for answer in row.answers.values())
        rows.append((_cell(row.question), _cell(" / ".join(row.expected)), *said))
    table = "\n\n" + _table(("asked", "expected", *sides), rows) if rows else ""
    return [f"## Answers on held-out rows\n\nJudged {words}.{table}"]


def _course(curve: Curve) -> str:
    """A dozen lines of the curve, the first and the last among them, under a picture of text."""
    losses = {step: row["loss"] for step, row in curve.items() if "loss" in row}
    if not losses:
        return f"Every step is in `{CURVE_FILE}`."
    steps = list(losses)
    shown = sorted({steps[round(i * (len(steps) - 1) / 11)] for i in range(12)})
    held_out = {step: f"{row['eval_loss']:.4g}" for step, row in curve.items() if "eval_loss" in row}
    rows = [(str(step), f"{losses[step]:.4g}", held_out.get(step, "")) for step in shown]
    least = min(losses, key=lambda step: losses[step])
    return (
        f"Training loss `{sparkline(list(losses.values()))}`, least {losses[least]:.4g} at step {least}; every step is "
        f"in `{CURVE_FILE}`.\n\n" + _table(("step", "loss", "held-out loss"), rows)
    )


def _settings(facts: CardFacts) -> str:
    rows = []
    for item in fields(facts.request.spec):
        if item.name == "context":
            continue  # it has a section of its own
        value = getattr(facts.request.spec, item.name)
        if isinstance(value, tuple):
            value = ", ".join(str(v) for v in value)
        rows.append((f"`{item.name}`", "default" if value is None else _cell(str(value))))
    return _table(("setting", "value"), rows)


def _loramux_snippet(facts: CardFacts) -> str:
    asked = 'messages=[{"role": "user", "content": "..."}]' if facts.asked_with == "messages" else '"..."'
    if (kwargs := facts.request.spec.chat_template_kwargs) and facts.asked_with == "messages":
        asked += f", chat_template_kwargs={json.loads(kwargs)!r}"
    return _code(
        "from loramux import Client",
        "",
        'with Client("localhost:50051") as client:',
        f"    print(client.generate({asked}, adapters=[{json.dumps(facts.request.name)}]).text)",
        *(["    # A candidate answers as name@version, until it is promoted."] if facts.gate_result else []),
    )


def _peft_snippet(facts: CardFacts) -> str:
    return _code(
        "from peft import PeftModel",
        "from transformers import AutoModelForCausalLM, BitsAndBytesConfig",
        "",
        'nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)',
        f"base = AutoModelForCausalLM.from_pretrained({json.dumps(facts.base_name)}, quantization_config=nf4)",
        'model = PeftModel.from_pretrained(base, "path/to/this/folder")',
    )


def _stack(stack: tuple[StackItem, ...]) -> str:
    return " + ".join(f"`{item.adapter}` x {item.weight:g}" for item in stack) or "the bare base"


def _code(*lines: str) -> str:
    return "\n".join(["```python", *lines, "```"])


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(
        "|" + "|".join(cell if set(cell) == {"-"} else f" {cell} " for cell in line) + "|" for line in lines
    )


def _cell(text: str) -> str:
    """Text that stays within its cell."""
    return " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|").replace("`", "\\`").replace("<", "&lt;")
