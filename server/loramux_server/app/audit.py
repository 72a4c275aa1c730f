"""The audit log as the settings have it, and what commands on the state directory write to it."""

from __future__ import annotations

import getpass
import os

from ..config import Settings
from ..telemetry.audit import AuditLog, Entry


def audit_log(settings: Settings) -> AuditLog | None:
    """The audit log; None where it is off."""
    path = settings.audit_file
    return None if path is None else AuditLog(path, max_bytes=int(settings.audit.size), keep=settings.audit.files)


def record_command(settings: Settings, action: str, object: str, *, tenant: str = "", **details: str) -> None:
    """Write down what a command on the state directory did: ``keys create``, to which object, with which details.

    Call it once the change is committed, and before it is told. Never pass a secret. Raises ``Error`` where it cannot
    be written.
    """
    log = audit_log(settings)
    if log is not None:
        log.open()
        log.write(Entry(action, object, tenant=tenant, peer=f"command line of {_user()}", details=details))


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # no name for the user id here, as in containers
        return str(os.getuid())
