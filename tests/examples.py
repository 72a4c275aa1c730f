"""How many examples Hypothesis draws: all of them in ``make test-all``, a quarter in ``make test``."""

from __future__ import annotations

import os
from typing import Any

from hypothesis import settings

ALL = os.environ.get("LORAMUX_TESTS") == "all"


def examples(number: int, **more: Any) -> settings:
    """Settings for up to ``number`` examples without a deadline; ``more`` goes to ``hypothesis.settings``."""
    return settings(max_examples=number if ALL else -(-number // 4), deadline=None, **more)
