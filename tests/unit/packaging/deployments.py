"""What the tests of the deployment files share: the files, and the settings that a server reads from variables."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from loramux_server import config

from .test_image import environment, rest_of

ROOT = Path(__file__).parents[3]
DEPLOY = ROOT / "deploy"
EXPOSED = [int(port) for port in rest_of("EXPOSE")[0].split()]
"""Ports of the image: gRPC, HTTP, metrics."""
MARGIN = 10
"""Seconds that a stop takes beside the drain: a checkpoint, the engine's end."""


@contextmanager
def variables(given: Mapping[str, Any]) -> Iterator[None]:
    """Have the settings among these variables, and no others."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("LORAMUX_")]:
            patch.delenv(name)
        for name, value in given.items():
            if name.startswith("LORAMUX_"):
                patch.setenv(name, str(value))
        yield


def settings(given: Mapping[str, Any], image: bool = True) -> config.Settings:
    """What a server reads with these variables, on top of the image's. Every one of them must be a setting."""
    with variables({**(environment() if image else {}), **given}):
        loaded = config.load({})
    assert loaded.unknown_variables == ()
    return loaded.settings


def paths(given: Mapping[str, Any]) -> list[Path]:
    """The files and folders that variables name."""
    return [Path(value) for value in given.values() if str(value).startswith("/")]
