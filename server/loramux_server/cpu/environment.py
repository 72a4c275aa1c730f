"""The environment of the engine's process: how many threads its libraries start, and how these wait."""

from __future__ import annotations

import os
from collections.abc import Mapping

from ..host.resources import host_cpus, usable_cpus

SPIN_COUNT = "100000"
"""How often a thread looks at a barrier before it sleeps, while the processors are the engine's (see spinning.py)."""


def engine_environment(given: Mapping[str, str]) -> dict[str, str]:
    """What the operator gave, and what follows from this host where nothing was given.

    Threads follow affinity and quota. Under a quota no thread spins: it would use up what the others need. Kernels of
    a hub are code of strangers, which transformers never gets to load, whatever is given.
    """
    cpus = usable_cpus()
    # torch's profiler would tell of each segment on standard error.
    chosen = {"OMP_NUM_THREADS": str(cpus), "KINETO_LOG_LEVEL": "6"}
    if "OMP_WAIT_POLICY" not in given:  # GOMP_SPINCOUNT would override it
        chosen["GOMP_SPINCOUNT"] = SPIN_COUNT if cpus == host_cpus() else "0"
    return {**chosen, **given, "USE_HUB_KERNELS": "NO"}


def may_spin(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether spinning was left to the engine."""
    return environment.get("GOMP_SPINCOUNT") == SPIN_COUNT
