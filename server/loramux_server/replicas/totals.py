"""The statistics of several engines as those of one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any

from ..core.backend import EngineStats, GpuStats


def total(stats: Sequence[EngineStats]) -> EngineStats:
    """What all replicas do together: counts and bytes are added, what is resident anywhere is resident."""
    return EngineStats(
        **{field.name: _add([getattr(each, field.name) for each in stats]) for field in fields(EngineStats)}
    )


def _add(values: Sequence[Any]) -> Any:
    """The sum of one field over all engines; None where no engine has it."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    match known[0]:
        case GpuStats():
            return _gpus(known)
        case dict():
            return _by_key(known)
        case tuple() if any(isinstance(part, str) for value in known for part in value):
            return tuple(sorted({part for value in known for part in value}))
        case tuple():
            length = max(map(len, known))
            return tuple(sum(column) for column in zip(*(_padded(value, length) for value in known), strict=True))
        case _:
            return sum(known)


def _by_key(values: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    keys = dict.fromkeys(key for value in values for key in value)
    return {key: _add([value[key] for value in values if key in value]) for key in keys}


def _padded(value: Sequence[float], length: int) -> list[float]:
    return [*value, *[0] * (length - len(value))]


def _gpus(values: Sequence[GpuStats]) -> GpuStats:
    used = [value.utilization for value in values if value.utilization is not None]
    return GpuStats(
        allocated=sum(value.allocated for value in values),
        reserved=sum(value.reserved for value in values),
        other_processes=_add([value.other_processes for value in values]),
        utilization=sum(used) / len(used) if used else None,
    )
