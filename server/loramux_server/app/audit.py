"""The audit log as the settings have it: what commands on the state directory write to it, and ``loramux audit``."""

from __future__ import annotations

import argparse
import getpass
import os
import re
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from ..config import Settings, load
from ..config.help import make_parser
from ..core.errors import Code, Error, invalid_field
from ..telemetry.audit import AuditLog, Entry
from ..telemetry.audit.reading import read

MOMENTS = "2026-11-29, 2026-11-29T08:00 (UTC), or an age such as 30m, 12h or 7d"


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
        log.write(Entry(action, object, tenant=tenant, peer=command_line_user(), details=details))


def command_line_user() -> str:
    """Who gives a command on this machine, as it is written down."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # no name for the user id here, as in containers
        name = str(os.getuid())
    return f"command line of {name}"


def audit_command(argv: Sequence[str]) -> int:
    """Show who changed what: the audit log of a state directory, its older files first."""
    parser = make_parser("loramux audit", audit_command.__doc__)
    parser.add_argument("--since", type=_moment, metavar="TIME", help=f"Only entries from then on: {MOMENTS}.")
    parser.add_argument("--tenant", metavar="TENANT", help="Only entries of this tenant.")
    parser.add_argument("--follow", action="store_true", help="Go on with what is written from now on.")
    parser.add_argument("--config", metavar="FILE", help="TOML file with settings.  [env var: LORAMUX_CONFIG]")
    parser.add_argument("--state-dir", metavar="DIR", help="State directory of the server.")
    parser.add_argument("--audit-log", metavar="FILE", help="File of the audit log, if not in the state directory.")
    parser.add_argument("--json", action="store_true", help="Print lines of JSON, as they are in the file.")
    arguments = parser.parse_args(argv)
    given = {"state_dir": arguments.state_dir, "audit.log": arguments.audit_log}
    settings = load({name: value for name, value in given.items() if value is not None}, arguments.config).settings
    if (path := settings.audit_file) is None:
        raise invalid_field("--audit-log", "is off: there is no audit log to show")
    torn = 0
    try:
        for entry in read(path, follow=arguments.follow):
            if entry is None:
                torn += 1
            elif _is_wanted(entry, arguments.since, arguments.tenant):
                print(entry.line().decode() if arguments.json else f"{described(entry)}\n", end="", flush=True)
    except FileNotFoundError:
        raise Error(
            Code.FAILED_PRECONDITION, f"there is no audit log at {path}; name it with --audit-log", reason="NO_STORE"
        ) from None
    if torn:
        print(f"loramux: {torn} line(s) were cut by a crash and are left out", file=sys.stderr)
    return 0


def described(entry: Entry) -> str:
    """An entry in one line for people: time, outcome, action, object, then who, from where, and details."""
    told = {
        "tenant": entry.tenant,
        "key": entry.key,
        "peer": entry.peer,
        "request": entry.request_id,
        **entry.details,
        "reason": entry.reason,
        "suppressed": str(entry.suppressed or ""),
    }
    head = (entry.written_time, f"{entry.outcome or '-':<17}", entry.action, entry.object or "-")
    return _plain("  ".join((*head, *(f"{name}={text}" for name, text in told.items() if text))))


def _is_wanted(entry: Entry, since: datetime | None, tenant: str | None) -> bool:
    return (since is None or entry.time >= since) and (tenant is None or entry.tenant == tenant)


def _moment(text: str) -> datetime:
    """A point in time as people write it. Raises ArgumentTypeError."""
    if found := re.fullmatch(r"(\d{1,6})([smhd])", text):
        unit = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}[found[2]]
        return datetime.now(UTC) - timedelta(**{unit: int(found[1])})
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no time; give {MOMENTS}") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _plain(text: str) -> str:
    """Without what a terminal would obey: callers may have made the text up."""
    return text.encode("unicode_escape").decode()
