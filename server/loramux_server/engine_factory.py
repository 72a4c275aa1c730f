"""Where engine and training meet: builds the backend that ``app`` serves from."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from .core.backend import EngineInfo
from .core.settings import EngineSettings
from .cpu import spinning
from .cpu.environment import may_spin
from .engine.scheduling.pages import tenant_salt
from .engine.transport.process import ProcessBackend
from .engine.transport.protocol import Output
from .store.state_dir import JOBS

if TYPE_CHECKING:
    from .engine.loop import EngineLoop

Progress = Callable[[str, float | None], None]
Emit = Callable[[list[Output]], object]


def make_backend(settings: EngineSettings) -> ProcessBackend:
    """A backend with the engine in a process of its own, not started yet."""
    return ProcessBackend(settings)


def build(settings: EngineSettings, secret: bytes, emit: Emit, progress: Progress) -> tuple[EngineLoop, EngineInfo]:
    """Load and build an engine on the calling thread. ``secret`` makes the tenants' prefix-cache salts."""
    # Imported late: the front works without torch, and a base that is missing is told before it is imported.
    from .model.base.quantize import IMPORTING, prepare

    prepared = prepare(settings.model, Path(settings.state_dir), progress)
    if "torch" not in sys.modules:
        progress(IMPORTING, None)
    import torch  # with it comes OpenMP

    if may_spin():
        spinning.control(settings.threads or torch.get_num_threads())
    from .model.base.uncompiled import import_bitsandbytes

    import_bitsandbytes()
    from .engine.build import build_engine
    from .training.job_scheduler import make_job_scheduler

    jobs_dir = Path(settings.state_dir) / JOBS
    return build_engine(
        settings, partial(make_job_scheduler, jobs_dir=jobs_dir), partial(tenant_salt, secret), emit, progress, prepared
    )
