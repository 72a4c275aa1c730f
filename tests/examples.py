"""How much a test tries: everything in ``make test-all``, what finds most faults in ``make test``."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import settings

ALL = os.environ.get("TEST_EXAMPLES") == "all"


def examples(number: int, **more: Any) -> settings:
    """Up to ``number`` examples of Hypothesis without a deadline, or a sixth; ``more`` goes to its ``settings``."""
    return settings(max_examples=number if ALL else -(-number // 6), deadline=None, **more)


def few(cases: Iterable[Any], default: int = 1) -> list[Any]:
    """Cases to parametrize with; those after the first ``default`` are slow. A tuple is a case of several arguments."""
    return [
        case if i < default else pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow)
        for i, case in enumerate(cases)
    ]
