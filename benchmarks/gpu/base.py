"""The default base with its adapters, made where it is not yet: the parts after this one measure with it."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch

from .engines import default_base


def measure(device: torch.device, quick: bool) -> Iterator[dict[str, float]]:
    """Seconds that it took."""
    begin = time.monotonic()
    default_base()
    yield {"seconds": time.monotonic() - begin}
