"""Where the examples' files are."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "examples"
"""What can be made again: the base's NF4 copy, tenants' adapters, results of trials."""


def page(example: str) -> Path:
    """The page of an example's folder."""
    return ROOT / "docs" / "examples" / f"{example.replace('_', '-')}.md"


def results(example: str) -> Path:
    """The folder of the results that are part of the repository."""
    return ROOT / "examples" / example / "results"
