"""Tests are worth something under ``python -O`` too, which CI runs some of them with."""

from __future__ import annotations

import subprocess
import sys

import pytest

from loramux_server.core.bounds import Bound


def test_asserts_of_tests_hold_without_asserts() -> None:
    with pytest.raises(AssertionError):
        assert 2 in Bound(0, 1)


def test_the_server_starts_without_asserts() -> None:
    command = [sys.executable, "-O", "-m", "loramux_server", "config-show", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
