"""A server without Ray says what to install before it loads anything."""

from __future__ import annotations

import pytest

from loramux_server.core.errors import Error
from loramux_server.replicas import installed


def test_without_ray_it_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installed, "find_spec", lambda name: None)
    with pytest.raises(Error, match=r"pip install 'ray\[serve\]"):
        installed.check_ray()


def test_with_ray_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installed, "find_spec", lambda name: object())
    installed.check_ray()
