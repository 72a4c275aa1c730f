"""Full fine-tuning and LoRA on the 16-bit base by a plain loop, a run for each learning rate and seed that is asked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from loramux_server.core.jobs import TrainRow, TrainSpec
from loramux_server.data.expect import Expected
from loramux_server.text import TextTokenizer

from ...trainers.rows import load_rows
from ..search import Run, next_runs, read
from ..tasks import PARTS
from . import loop


def run(settings: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Runs until the search is over, as they are done; ``runs`` has those of before.

    Computed in float32 on the values of the 16-bit weights: a processor without bfloat16 units has nothing faster.
    """
    torch.set_num_threads(settings["threads"])
    text = TextTokenizer.load(settings["nf4"])
    rows = {part: load_rows(settings["nf4"], settings["files"][part]) for part in PARTS}
    held_out = [json.loads(line) for line in Path(settings["files"]["held_out"]).read_text().splitlines()]
    runs = read(settings["runs"])
    while wanted := next_runs(runs, settings["ladder"], settings["seeds"]):
        for rate, seed in wanted:
            spec = TrainSpec(**settings["spec"], learning_rate=rate, seed=seed)
            model = loop.trainable(loop.load_model(Path(settings["bfloat16"]), torch.float32), settings["way"], spec)
            loop.train(model, rows["train"], spec, torch.float32)
            chosen_on = loop.evaluate(model, rows["chosen_on"])
            best = all(chosen_on <= run.chosen_on_loss for run in runs if run.rate != rate)
            right = _right(model, rows["held_out"], held_out, text, settings["max_tokens"]) if best or seed else None
            done = Run(rate, seed, chosen_on, loop.evaluate(model, rows["held_out"]), right, len(held_out))
            runs.append(done)
            yield asdict(done)
            del model


def _right(
    model: Any, rows: tuple[TrainRow, ...], said: list[dict[str, Any]], text: TextTokenizer, max_tokens: int
) -> int:
    prompts = [row.input_ids[: row.labels.index(True)] for row in rows]
    end = rows[0].input_ids[-1]
    answers = [text.decode_answer(tuple(ids)) for ids in loop.answers(model, prompts, max_tokens, end)]
    return sum(Expected((row["expect"],)).right(answer) for row, answer in zip(said, answers, strict=True))
