"""Import bitsandbytes without torch's compiler."""

from __future__ import annotations

import torch


def import_bitsandbytes() -> None:
    """Import it so that functions which nothing here calls stay as they are, for the life of the process.

    It wraps them in torch.compile, which imports its back end at once: more than a second, and 55 MB.
    """
    compile = torch.compile
    torch.compile = lambda model=None, **_: model if model is not None else lambda function: function  # type: ignore[assignment]
    try:
        import bitsandbytes  # noqa: F401
    finally:
        torch.compile = compile
