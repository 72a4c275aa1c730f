"""QLoRA by the server's jobs beside LoRA on the 16-bit base and full fine-tuning, with settings searched equally."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from loramux import AsyncClient
from loramux_server.data.expect import Expected

from .results import Results
from .search import LADDERS, Run, next_runs, read
from .setting import Setting
from .tasks import EPOCHS, Task, tasks

WAYS = ("full", "lora", "qlora")
SPEC = {"rank": 16, "alpha": 32.0, "epochs": float(EPOCHS), "batch_size": 8}
MAX_TOKENS = 32
"""Of an answer: all that are expected are shorter."""
END = "<|im_end|>"
"""The default base's end of an answer, which is learned like the answer."""

Report = Callable[[Run], None]


def measure(setting: Setting, results: Results) -> None:
    """Train what no earlier run did. Two ways run at once, a thread each; every run is written when it is done."""
    spec = {**SPEC, "max_steps": 2} if setting.quick else SPEC
    learned = tasks(setting.facts, setting.quick)
    results.put("tasks", {task.name: task.about for task in learned})
    for task in learned:
        files = task.write(setting.material / "rows")

        def one(way: str, task: Task = task, files: dict[str, str] = files) -> None:
            def report(run: Run) -> None:
                results.append(f"quality/{task.name}/{way}", asdict(run))

            runs = results.list(f"quality/{task.name}/{way}")
            if not next_runs(read(runs), LADDERS[way], setting.seeds):
                return
            if way == "qlora":
                asyncio.run(_qlora(setting, task, files, spec, read(runs), report))
                return
            asked = {
                "way": way,
                "files": files,
                "runs": runs,
                "ladder": LADDERS[way],
                "seeds": setting.seeds,
                "spec": spec,
                "max_tokens": MAX_TOKENS,
                "threads": 1,
                **setting.base,
            }
            for line in setting.worker("quality", asked, threads=1):
                report(Run(**line))

        with ThreadPoolExecutor(max_workers=setting.threads) as pool:
            list(pool.map(one, WAYS))


async def _qlora(
    setting: Setting, task: Task, files: dict[str, str], spec: dict[str, Any], runs: list[Run], report: Report
) -> None:
    async with setting.server("--dtype", "float32", "--threads", "1") as client:
        while wanted := next_runs(runs, LADDERS["qlora"], setting.seeds):
            names = {pair: f"{task.name}-{pair[0]:g}-{pair[1]}".replace(".", "-") for pair in wanted}
            jobs = [
                await client.train(name, Path(files["train"]), learning_rate=rate, seed=seed, gate="none", **spec)
                for (rate, seed), name in names.items()
            ]
            for job in jobs:
                await job.wait()
            losses = {pair: await _loss(client, _rows(files["chosen_on"]), name) for pair, name in names.items()}
            best = min([*losses.values(), *(run.chosen_on_loss for run in runs)])
            for (rate, seed), name in names.items():
                held_out = _rows(files["held_out"])
                loss = losses[rate, seed]
                right = await _right(client, held_out, name) if seed or loss == best else None
                run = Run(rate, seed, loss, await _loss(client, held_out, name), right, len(held_out))
                runs.append(run)
                report(run)


async def _loss(client: AsyncClient, rows: Sequence[dict[str, Any]], name: str) -> float:
    scores = await asyncio.gather(
        *(client.score(row["prompt"], row["completion"] + END, adapters=[name]) for row in rows)
    )
    return -sum(score.total for score in scores) / sum(len(score.logprobs) for score in scores)


async def _right(client: AsyncClient, rows: Sequence[dict[str, Any]], name: str) -> int:
    answers = await asyncio.gather(
        *(client.generate(row["prompt"], adapters=[name], max_tokens=MAX_TOKENS, temperature=0.0) for row in rows)
    )
    return sum(Expected((row["expect"],)).right(a.text) for row, a in zip(rows, answers, strict=True))


def _rows(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]
