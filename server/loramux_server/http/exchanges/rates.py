"""Headers that tell a caller what is left of its quotas, as OpenAI names them."""

from __future__ import annotations

import math
from collections.abc import Iterable

from ...services.access.quotas import Rate

_NAMES = {"requests_per_minute": "requests", "tokens_per_minute": "tokens"}


def rate_headers(rates: Iterable[Rate]) -> dict[str, str]:
    """``x-ratelimit-limit-requests`` and so on; nothing where there is no quota."""
    headers: dict[str, str] = {}
    for rate in rates:
        name = _NAMES[rate.limit]
        headers[f"x-ratelimit-limit-{name}"] = str(rate.size)
        headers[f"x-ratelimit-remaining-{name}"] = str(rate.left)
        headers[f"x-ratelimit-reset-{name}"] = _duration(rate.seconds)
    return headers


def _duration(seconds: float) -> str:
    """``1m30s``, ``8.64s`` or ``120ms``, as OpenAI writes times."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    minutes, rest = divmod(math.ceil(seconds * 100) / 100, 60)
    return (f"{minutes:.0f}m" if minutes else "") + f"{rest:.4g}s"
