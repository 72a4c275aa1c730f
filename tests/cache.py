"""The folder that tests keep between runs: the NF4 copy of the default base, and compiled functions."""

from __future__ import annotations

import os
from pathlib import Path


def kept_between_runs() -> Path:
    """TEST_CACHE, else a folder in the user's cache folder."""
    own = os.environ.get("TEST_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "loramux-tests"
