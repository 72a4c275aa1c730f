"""Where a job's checkpoints lie: a folder each in the job's folder, named by its step."""

from __future__ import annotations

import re
from pathlib import Path

KEPT = 2
"""Checkpoints that are kept: if the newest is damaged, the job resumes from the one before it."""
_STEP = "step-"
_NAME = re.compile(re.escape(_STEP) + "[0-9]{8,}", re.ASCII)


def checkpoint_name(step: int) -> str:
    """The name of the folder of a step's checkpoint."""
    return f"{_STEP}{step:08}"


def is_checkpoint(name: str) -> bool:
    """Whether a folder of this name is a checkpoint."""
    return _NAME.fullmatch(name) is not None


def step_of(place: Path) -> int:
    """The step of a checkpoint's folder."""
    return int(place.name.removeprefix(_STEP))


def checkpoint_places(folder: Path) -> list[Path]:
    """The folders of a job's checkpoints, newest first; none where ``folder`` is gone."""
    return sorted((place for place in folder.glob(f"{_STEP}*") if is_checkpoint(place.name)), reverse=True)
