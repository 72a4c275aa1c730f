"""What a training job takes on this machine: multiply-adds by the shapes of the base, seconds by a measured speed.

Counted are the products with the base's matrices, which take nearly all of the time: one forward and one backward to
the inputs through the layers from the first adapted one on, the same through the output head at loss tokens, and
one forward through the layers below, whose results are kept from epoch to epoch. A preference pair counts both
answers, and once a job a forward of each without the adapter. A distillation counts the teacher's forward over rows
and contexts once a job, and its output head at every loss token of every pass. Where it is on-policy, each pass has the
teacher's forward and one of the student, which answers: as if its answers were as long as the data's. Left out are
attention itself, evaluation, publishing and answers that the teacher or the student has yet to give.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

from ....core.backend import EngineInfo
from ....core.jobs import TrainSpec
from ....data.dataset import DatasetSummary
from ....training.backprop.micro_batch_size import LOGITS_BYTES, MAX_TOKENS, activation_budget
from ....training.schedule import Schedule
from .settings import selected_modules

_LAYER = re.compile(r"\.(\d+)\.")
FLOAT = 4
LOGIT_ROWS = 64
"""Rows of logits that exist at a time in a step."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """Seconds of training with nothing else to do, and bytes at the peak beside what serving holds."""

    seconds: float | None
    memory_bytes: int
    basis: str
    """What the seconds were worked out from, for people; empty: there is nothing to go by."""


@dataclass(frozen=True, slots=True)
class Speed:
    """Multiply-adds a second, and where the number comes from."""

    rate: float
    basis: str


@dataclass(frozen=True, slots=True)
class Shape:
    """Weights of the base by their part in a job: below the first adapted layer, from there on, and of the head."""

    lower: int
    upper: int
    head: int
    adapter: int
    hidden: int
    inner: int
    layers: int
    """Layers from the first adapted one on."""

    @classmethod
    def of(cls, info: EngineInfo, spec: TrainSpec) -> Shape:
        """The shape of a job with ``spec`` on the base."""
        weights: Counter[int] = Counter()
        for name, (inputs, outputs) in info.linear_modules.items():
            weights[_layer(name)] += inputs * outputs
        targets = selected_modules(spec, info)
        first = min(map(_layer, targets))
        shapes = info.linear_modules.values()
        hidden = next(iter(shapes))[0]
        return cls(
            lower=sum(count for layer, count in weights.items() if layer < first),
            upper=sum(count for layer, count in weights.items() if layer >= first),
            head=hidden * info.vocab_size,
            adapter=sum(spec.rank * sum(info.linear_modules[name]) for name in targets),
            hidden=hidden,
            inner=max(map(max, shapes)),
            layers=sum(layer >= first for layer in weights),
        )

    def work(self, report: DatasetSummary, passes: float, *, on_policy: bool = False) -> float:
        """Multiply-adds of ``passes`` passes over the rows of ``report``."""
        tokens, trained = report.tokens, report.trained_tokens
        step = tokens * (2 * self.upper + 3 * self.adapter) + trained * 2 * self.head
        once = tokens * self.lower
        if report.pairs:
            once += tokens * self.upper + trained * self.head
        if report.teacher_tokens:
            step += trained * self.head
            taught = report.teacher_tokens * (self.lower + self.upper)
            once += taught
            if on_policy:
                step += tokens * (self.lower + self.upper + self.adapter) + trained * self.head + taught
        return passes * step + min(passes, 1) * once

    def forward(self, tokens: int) -> float:
        """Multiply-adds of one forward over a prompt."""
        return float(tokens * (self.lower + self.upper) + self.head)


def speed_of_job(shape: Shape, spec: TrainSpec, report: DatasetSummary, tokens_per_second: float, name: str) -> Speed:
    """The speed that a job with ``shape`` and ``spec`` ran at; its share of loss tokens is taken from ``report``."""
    passes = max(spec.epochs, 1.0)
    work = shape.work(report, passes, on_policy=spec.on_policy) / (passes * report.tokens)
    return Speed(tokens_per_second * work, f"the speed of {name}")


def estimate(
    info: EngineInfo,
    spec: TrainSpec,
    report: DatasetSummary,
    speed: Speed | None,
    free: int,
    activation_memory: int | None = None,
) -> Estimate:
    """What training with ``spec`` on the rows of ``report`` takes; ``free`` is the device's free memory in bytes.

    Above ``activation_memory`` bytes of activations (None: a quarter of ``free``) there is gradient checkpointing.

    Memory is the adapter with its gradient and AdamW's two moments, the activations of the largest micro-batch
    (about 20 values per hidden unit and 4 per inner one a token and layer, or one layer's and every layer's input where
    they are computed again), a chunk of logits with its gradient, and what is kept of the layers below. A teacher
    adds its forward, its final hidden states at the loss tokens, and its logits.
    """
    shape = Shape.of(info, spec)
    passes = Schedule(spec, report.examples).total_steps * spec.batch_size / report.examples
    work = shape.work(report, passes, on_policy=spec.on_policy)
    sides = 2 if report.pairs else 1
    tokens = max(min(MAX_TOKENS, spec.batch_size * report.longest * sides), report.longest * sides)
    activation = FLOAT if info.training_dtype == "float32" else FLOAT // 2
    layer = activation * tokens * (20 * shape.hidden + 4 * shape.inner)
    activations = layer * shape.layers
    if activations > activation_budget(free, activation_memory):
        activations = layer + activation * tokens * shape.hidden * shape.layers
    kept = min(activation * report.tokens * shape.hidden, free // 8) if shape.lower else 0
    logits = 3 * max(FLOAT * LOGIT_ROWS * info.vocab_size, LOGITS_BYTES[info.device.partition(":")[0]])
    if report.teacher_tokens:
        read = max(min(MAX_TOKENS, spec.batch_size * report.longest_taught), report.longest_taught)
        activations = max(activations, activation * read * (20 * shape.hidden + 4 * shape.inner))
        kept += min(activation * report.trained_tokens * shape.hidden, free // 8)
        logits *= 2
    memory = 4 * FLOAT * shape.adapter + activations + logits + kept
    return Estimate(work / speed.rate if speed else None, memory, speed.basis if speed else "")


def _layer(name: str) -> int:
    found = _LAYER.search(name)
    return int(found[1]) if found else 0
