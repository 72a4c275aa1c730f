"""Where engine and training meet: builds the backend that ``app`` serves from."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable
from typing import TYPE_CHECKING

from .core.backend import EngineInfo
from .core.settings import EngineSettings
from .engine.thread_backend import Emit, ThreadBackend

if TYPE_CHECKING:
    from .engine.loop import EngineLoop

Progress = Callable[[str, float | None], None]


def make_backend(settings: EngineSettings, progress: Progress) -> ThreadBackend:
    """A backend that is not started yet. ``progress(step, fraction or None)`` is called from the engine's thread."""
    secret = secrets.token_bytes(32)

    def salt(tenant: str) -> bytes:
        return hashlib.blake2b(tenant.encode(), key=secret, digest_size=16).digest()

    def build(emit: Emit) -> tuple[EngineLoop, EngineInfo]:
        # Imported on the engine's thread: the front works, and fails early, without torch.
        from .engine.build import build_engine
        from .training.tasks import make_tasks

        return build_engine(settings, make_tasks, salt, emit, progress)

    return ThreadBackend(build)
