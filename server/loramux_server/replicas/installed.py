"""Whether Ray is there, found out without importing it: it reads its environment when it is imported."""

from __future__ import annotations

from importlib.util import find_spec

from ..core.errors import Code, Error


def check_ray() -> None:
    """Raise FAILED_PRECONDITION where the package ray is not installed."""
    if find_spec("ray") is None:
        raise ray_missing()


def ray_missing() -> Error:
    """FAILED_PRECONDITION for a server without Ray, or with one that lacks Serve."""
    return Error(
        Code.FAILED_PRECONDITION,
        "--backend ray needs the package ray with Serve; install it with: pip install 'ray[serve]>=2.60,<3'",
        reason="RAY_MISSING",
    )
