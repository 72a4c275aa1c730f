"""What can fail at once is tried before anything that takes long is imported or loaded."""

from __future__ import annotations

from .config import Settings
from .host.certificates import read_certificate
from .host.ports import cannot_listen, cannot_serve_metrics, why_not
from .model.base.source import check
from .replicas.installed import check_ray
from .services.access.exposure import check_listen, check_metrics_listen
from .services.access.key_file import read_key
from .store.state_dir import StateDir
from .telemetry.endpoint import read_token


def preflight(settings: Settings) -> None:
    """Raise why the server cannot start with these settings, where that takes moments to find out.

    Addresses that others could reach, certificates that cannot be used, a bootstrap key that is none, a state directory
    in use or not writable, ports that are taken, a base that is nowhere on this machine and may not be asked for.
    Whoever opens these things later still checks: they may change meanwhile.
    """
    check_listen(settings, callers_known=True)  # whether there are keys is known once the database is open
    check_metrics_listen(settings)
    if settings.tls.cert and settings.tls.key:
        read_certificate(settings.tls.cert, settings.tls.key, settings.tls.client_ca)
    if settings.metrics_token:
        read_token(settings.metrics_token)
    StateDir.open(settings.state_dir).close()
    if settings.bootstrap_key is not None:
        read_key(settings.bootstrap_key)
    if settings.metrics_listen and (why := why_not(*settings.metrics_listen)):
        raise cannot_serve_metrics(*settings.metrics_listen, why)
    if why := why_not(*settings.listen):
        raise cannot_listen(*settings.listen, why)
    if settings.http_listen and (why := why_not(*settings.http_listen)):
        raise cannot_listen(*settings.http_listen, why, flag="--http-listen")
    if settings.backend == "ray":
        check_ray()
    check(settings.model, settings.state_dir / "base")
