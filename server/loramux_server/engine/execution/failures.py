"""Why a request cannot be answered, though nothing is wrong with it by itself."""

from __future__ import annotations

from ...core.errors import LOGITS_NOT_FINITE, Code, Error
from ...core.types import Stack


def not_finite(stack: Stack) -> Error:
    """The failure of a request whose logits are not finite: of its adapters if it has any, else of the server."""
    if not stack:
        return Error(Code.INTERNAL, "the base gave logits that are not finite", reason=LOGITS_NOT_FINITE)
    names = ", ".join(entry.adapter.ref for entry in stack.entries)
    return Error(
        Code.FAILED_PRECONDITION,
        f"the logits are not finite with this stack ({names}): its values are too large for the model; give smaller"
        " weights, or leave an adapter out",
        reason=LOGITS_NOT_FINITE,
    )


def no_memory() -> Error:
    """The failure of a request that finds no memory even alone."""
    return Error(
        Code.RESOURCE_EXHAUSTED,
        "the server has no memory left to compute this request, even alone; try again later, shorten it, or have"
        " --kv-cache-memory lowered",
        reason="OUT_OF_MEMORY",
    )
