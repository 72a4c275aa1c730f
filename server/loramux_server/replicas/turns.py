"""Turns among the processes of a Ray cluster: one holds a name, the others wait for it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

NAMESPACE = "loramux"
POLL_SECONDS = 0.1


class Holder:
    """An actor that is nothing but its name."""


@contextmanager
def turn(name: str) -> Iterator[None]:
    """Hold ``name`` in the cluster; waits while another process holds it. Ray frees the name of one that dies."""
    import ray

    # Ray lets one actor have a name, and ends an actor with the process that made it.
    holder = ray.remote(num_cpus=0)(Holder).options(name=name, namespace=NAMESPACE)
    while True:
        try:
            held: Any = holder.remote()
            break
        except ValueError:  # another process has it
            time.sleep(POLL_SECONDS)
    try:
        yield
    finally:
        ray.kill(held)
