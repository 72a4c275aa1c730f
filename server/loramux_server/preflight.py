"""What can fail at once is tried before anything that takes long is imported or loaded."""

from __future__ import annotations

from .config import Settings
from .host.ports import cannot_listen, cannot_serve_metrics, why_not
from .model.base.source import check
from .store.state_dir import StateDir


def preflight(settings: Settings) -> None:
    """Raise why the server cannot start with these settings, where that takes moments to find out.

    A state directory in use or not writable, ports that are taken, a base that is nowhere on this machine and may not
    be asked for. Whoever opens these things later still checks: they may change meanwhile.
    """
    StateDir.open(settings.state_dir).close()
    if settings.metrics_listen and (why := why_not(*settings.metrics_listen)):
        raise cannot_serve_metrics(*settings.metrics_listen, why)
    if why := why_not(*settings.listen):
        raise cannot_listen(*settings.listen, why)
    check(settings.model, settings.state_dir / "base")
