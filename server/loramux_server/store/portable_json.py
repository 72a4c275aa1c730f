"""JSON columns for metrics: numbers that JSON does not have (NaN, infinities) are kept in any database."""

from __future__ import annotations

import math
from typing import Any

from sqlalchemy import JSON, Dialect
from sqlalchemy.types import TypeDecorator

_MARK = "__float__"


class MetricsJSON(TypeDecorator[Any]):
    """A JSON value in which a float that is not finite is stored as ``{"__float__": "nan"}``."""

    impl = JSON
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> Any:
        return _out(value)

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:
        return _in(value)


def _out(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return {_MARK: repr(value)}
    if isinstance(value, dict):
        return {key: _out(item) for key, item in value.items()}
    return [_out(item) for item in value] if isinstance(value, list | tuple) else value


def _in(value: Any) -> Any:
    if isinstance(value, dict):
        return float(value[_MARK]) if value.keys() == {_MARK} else {key: _in(item) for key, item in value.items()}
    return [_in(item) for item in value] if isinstance(value, list) else value
