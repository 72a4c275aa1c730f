"""What the server cannot serve exactly it refuses at its start; nothing is served that is silently wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from loramux_server.core.errors import Code, Error
from tests.architectures import CASES
from tests.engine import Engine


@pytest.mark.parametrize("arch", [arch for arch, case in CASES.items() if case.outcome == "refused"])
def test_refused_at_the_start(arch: str, tiny_base: Callable[..., Path], tmp_path: Path) -> None:
    base = tiny_base(arch)
    with pytest.raises(Error) as refused:
        Engine(base, tmp_path)
    assert (refused.value.code, refused.value.reason) == (Code.FAILED_PRECONDITION, "MODEL_NOT_SUPPORTED")
