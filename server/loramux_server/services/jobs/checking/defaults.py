"""Settings that a job's maker left to the server: chosen for the base, or taken from the version it starts from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from ....core.backend import EngineInfo
from ....core.callers.principal import Principal
from ....core.errors import FieldViolation, invalid
from ....core.jobs import JobRequest, TrainSpec
from ....core.types import AdapterVersion
from ....data.dataset import holds_pairs
from ....peft.schema import AdapterConfig, check_files
from ....store.store import Store
from ...datasets.replay import find_replay
from .settings import selected_modules

LIKE_THE_VERSION = ("rank", "alpha", "rslora", "target_modules", "layers")
RATE, RATE_AT, RATE_POWER = 2e-4, 6.5e9, 0.66
MIN_RATE, MAX_RATE = 1e-4, 3e-3
DPO_SHARE = 1 / 20
"""The learning rate of DPO, of that for SFT: 1e-5 at 7 billion parameters and 5e-6 from 13 on, as recipes have it."""
REPLAY_ROWS = 32


def automatic_learning_rate(info: EngineInfo, share: float = 1.0) -> float:
    """A peak learning rate for the size of the base, times ``share``, two digits.

    2e-4 for 7 billion parameters (6.5 of them in linears), more for smaller bases as a power that goes through 3e-3
    at the 0.1 billion of the default base, where it was measured; within 1e-4 and 3e-3.
    """
    size = sum(inputs * outputs for inputs, outputs in info.linear_modules.values())
    rate = RATE * (RATE_AT / max(size, 1)) ** RATE_POWER
    return float(f"{min(max(rate, MIN_RATE), MAX_RATE) * share:.2g}")


def settled(request: JobRequest, principal: Principal, info: EngineInfo, store: Store) -> JobRequest:
    """``request`` with nothing left open; blocking.

    That is the method (by the data and the context), the learning rate, what is replayed, and with ``init_from`` that
    version's shape. Raises NOT_FOUND for data and versions that are not there, INVALID_ARGUMENT for settings that do
    not fit them.
    """
    with store.datasets.open(request.dataset_id, principal.tenant) as file:
        pairs = holds_pairs(file)
    spec = request.spec if request.gave("method") else replace(request.spec, method=_method(request.spec, pairs))
    if violations := [*_method_violations(replace(request, spec=spec), pairs)]:
        raise invalid(violations)
    if not request.gave("learning_rate"):
        share = DPO_SHARE if spec.method == "dpo" else 1.0
        spec = replace(spec, learning_rate=automatic_learning_rate(info, share))
    spec = with_replay(spec, request.gave, store, principal.tenant)
    if not request.init_from:
        return replace(request, spec=spec)
    version = store.adapters.resolve(request.init_from, principal)
    config = _config_of(version, info, store)
    taken: dict[str, Any] = {n: getattr(config.lora, n) for n in LIKE_THE_VERSION if not request.gave(n)}
    spec = replace(spec, **taken)
    if violations := _misfits(version.ref, spec, config, info):
        raise invalid(violations)
    return replace(request, spec=spec, init_from=version.ref)


def _config_of(version: AdapterVersion, info: EngineInfo, store: Store) -> AdapterConfig:
    """The settings of a stored version. Raises DATA_LOSS when its files are damaged; it is quarantined then."""
    return check_files(store.adapters.files.read(version), info.linear_modules, info.base_fingerprint)


def with_replay(spec: TrainSpec, gave: Callable[[str], bool], store: Store, tenant: str) -> TrainSpec:
    """``spec`` with the dataset of what it replays, if anything, and how many rows; blocking. Raises NOT_FOUND."""
    if not spec.replay:
        return spec
    rows = spec.replay_rows if gave("replay_rows") else REPLAY_ROWS
    return replace(spec, replay=find_replay(store, spec.replay, tenant), replay_rows=rows)


def _method(spec: TrainSpec, pairs: bool) -> str:
    """The method of a job whose maker leaves it open."""
    if spec.context or spec.on_policy:
        return "distill"
    return "dpo" if pairs else "sft"


def _method_violations(request: JobRequest, pairs: bool) -> Iterator[FieldViolation]:
    """A method that the data are not for, and settings that are not for the method."""
    spec = request.spec
    if spec.method == "sft" and pairs:
        yield FieldViolation("method", "is sft, but the data are preference pairs; leave it out, or give dpo")
    if spec.method == "distill" and pairs:
        yield FieldViolation("method", "is distill, but the data are preference pairs; leave context out for dpo")
    if spec.context and spec.method != "distill":
        yield FieldViolation("context", f"is what a teacher reads, but method is {spec.method}; give method distill")
    if spec.on_policy and spec.method != "distill":
        yield FieldViolation(
            "on_policy", f"has the student of a distillation answer, but method is {spec.method}; give method distill"
        )
    if spec.method == "dpo" and not pairs:
        yield FieldViolation(
            "method", "is dpo, but the data are not preference pairs (chosen, rejected); leave it out, or give sft"
        )
    if spec.method == "dpo" and request.recipe:
        yield FieldViolation("recipe", "is for answers to learn, not for preference pairs; leave it out")
    elif spec.method == "dpo" and spec.replay:
        yield FieldViolation("replay", "has no place among preference pairs; leave it out")


def _misfits(ref: str, spec: TrainSpec, config: AdapterConfig, info: EngineInfo) -> list[FieldViolation]:
    """Settings with which a job cannot start from a version: its weights would have no place, or another scale."""
    found: list[FieldViolation] = []
    theirs = config.lora
    hint = f"leave it out to take that of {ref}"
    for name in ("rank", "alpha", "rslora"):
        mine, its = getattr(spec, name), getattr(theirs, name)
        if mine != its:
            found.append(FieldViolation(name, f"is {mine}, but init_from starts from {ref}, which has {its}; {hint}"))
    if theirs.rank_pattern or theirs.alpha_pattern:
        found.append(FieldViolation("init_from", f"{ref} has modules of unlike rank or alpha, a job has one of each"))
    odd = {m.name for m in config.modules} ^ set(selected_modules(spec, info))
    if odd and not found:
        message = (
            f"picks, with layers, other modules than {ref} has, such as {min(odd)}; leave target_modules and layers out"
            f" to take those of {ref}"
        )
        found.append(FieldViolation("target_modules", message))
    return found
