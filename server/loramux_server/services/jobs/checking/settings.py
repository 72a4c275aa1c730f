"""Checks of training settings against the limits and the base. Pure functions."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import asdict

from ....core.backend import EngineInfo
from ....core.bounds import text_violations
from ....core.errors import FieldViolation
from ....core.jobs import BOUNDS, MAX_REPLAY_ROWS, MIN_ACCURACY, TOP_K_BOUND, JobRequest, TrainSpec
from ....core.types import StackItem
from ....peft.lora_config import ALL_LINEAR, LoraConfig
from ...common.checks import (
    metadata_violations,
    shown,
    stack_violations,
    template_kwargs_violations,
)
from ...common.limits import Limits

MAX_STACKS = 64


def job_violations(request: JobRequest, info: EngineInfo, limits: Limits) -> list[FieldViolation]:
    """Everything wrong with a job's settings that can be seen without its data or the registry."""
    found = [*spec_violations(request.spec, info, limits), *on_top_of_violations(request.on_top_of)]
    if not request.dataset_id:
        found.append(FieldViolation("dataset_id", "is empty; upload a dataset first and give its id"))
    found += metadata_violations(request.metadata)
    found += TOP_K_BOUND.violations("compare_top_k", request.compare_top_k)
    if request.compare_prompt:
        found += text_violations("compare_prompt", request.compare_prompt.strip(), limits.max_prompt_bytes)
    return [*found, *_held_out_violations(request)]


def _held_out_violations(request: JobRequest) -> Iterator[FieldViolation]:
    """What needs held-out rows, and whether there will be any."""
    spec = request.spec
    if request.validation_dataset_id and spec.validation_split:
        yield FieldViolation("validation_split", "is given beside held-out data; give one of the two")
    if not request.validation_dataset_id and not spec.validation_split:
        how = "needs held-out rows: give validation data, or validation_split such as 0.1"
        for name, asked in (
            ("gate", request.gate.kind not in ("", "none")),
            ("compare_prompt", bool(request.compare_prompt)),
            ("compare_documents", bool(request.compare_documents)),
            ("eval_steps", spec.eval_steps is not None),
            ("early_stopping_patience", spec.early_stopping_patience is not None),
        ):
            if asked:
                yield FieldViolation(name, how)
    if request.gate.kind == MIN_ACCURACY and not 0 < request.gate.min_accuracy <= 1:
        yield FieldViolation(
            "gate.min_accuracy",
            f"is {request.gate.min_accuracy:g}; it must be above 0 and at most 1, a share of the rows",
        )


def on_top_of_violations(stacks: tuple[tuple[StackItem, ...], ...]) -> Iterator[FieldViolation]:
    """Each stack by the rules of a request's stack."""
    if len(stacks) > MAX_STACKS:
        yield FieldViolation("on_top_of", f"has {len(stacks)} stacks, at most {MAX_STACKS} are allowed")
        return
    for i, stack in enumerate(stacks):
        yield from stack_violations(stack, f"on_top_of[{i}]")


def spec_violations(spec: TrainSpec, info: EngineInfo, limits: Limits) -> Iterator[FieldViolation]:
    """Every setting within its bounds, and target modules and layers that the base has."""
    most = {**asdict(limits), "max_context": info.max_context}
    for field, bound in BOUNDS.items():
        if (value := getattr(spec, field)) is not None:
            yield from bound.within(most).violations(field, value)
    if 0 < spec.replay_rows <= MAX_REPLAY_ROWS and not spec.replay:
        yield FieldViolation("replay_rows", "is given without replay; name the dataset to draw them from, or default")
    if spec.chat_template_kwargs:
        yield from template_kwargs_violations(spec.chat_template_kwargs)
    if spec.context:
        yield from text_violations("context", spec.context.strip(), limits.max_prompt_bytes)
    yield from _target_violations(spec, info)


def selected_modules(spec: TrainSpec, info: EngineInfo) -> list[str]:
    """Full names of the linears that ``target_modules`` and ``layers`` pick, in the base's order.

    A target is the end of a name (``q_proj``, ``self_attn.q_proj``) or a whole one; ``all-linear`` is every linear.
    """
    config = LoraConfig(spec.rank, spec.alpha, target_modules=spec.target_modules, layers=spec.layers)
    return config.targets(list(info.linear_modules))


def _target_violations(spec: TrainSpec, info: EngineInfo) -> Iterator[FieldViolation]:
    bad_layers = [layer for layer in spec.layers or () if not 0 <= layer < info.num_layers]
    if spec.layers is not None and (bad_layers or not spec.layers):
        what = f"has {bad_layers[0]}" if bad_layers else "is empty"
        yield FieldViolation("layers", f"{what}; this base has layers 0 to {info.num_layers - 1}")
        return
    if ALL_LINEAR in spec.target_modules and len(spec.target_modules) > 1:
        yield FieldViolation("target_modules", f"has other names beside {ALL_LINEAR!r}, which is all of them")
        return
    if not spec.target_modules:
        yield FieldViolation("target_modules", f"is empty; give {ALL_LINEAR!r} or names such as {_known(info)}")
        return
    unknown = False
    for i, target in enumerate(spec.target_modules):
        if not any(_names(target, name) for name in info.linear_modules):
            unknown = True
            yield FieldViolation(f"target_modules[{i}]", f"{shown(target)} {_suggestion(target, info)}")
    if not unknown and not selected_modules(spec, info):
        yield FieldViolation("target_modules", "names no module of the given layers")


def _names(target: str, module: str) -> bool:
    return target == ALL_LINEAR or module == target or (bool(target) and module.endswith("." + target))


def _suggestion(target: str, info: EngineInfo) -> str:
    close = difflib.get_close_matches(target, _suffixes(info), n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"is no linear of this base; {hint}It has {_known(info)} (or give {ALL_LINEAR!r})"


def _suffixes(info: EngineInfo) -> list[str]:
    return sorted({name.rpartition(".")[2] for name in info.linear_modules})


def _known(info: EngineInfo) -> str:
    return ", ".join(_suffixes(info))
