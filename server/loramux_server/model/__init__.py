"""The base model: where it comes from, its NF4 copy, loading, attention and KV pages."""

from __future__ import annotations

import logging
import sys

# On processors with AVX512-BF16, importing bitsandbytes asks the package `kernels`, where that is installed, to
# download and load native code from a hub. A server never runs code that it was not installed with; our CPU linears
# have no use for it either. Without the package bitsandbytes only warns.
sys.modules.setdefault("kernels", None)  # type: ignore[arg-type]
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
