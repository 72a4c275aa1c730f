"""``loramux quotas``: the limits of tenants and keys, in the database of a server that runs or does not."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from contextlib import closing

from pydantic import ByteSize, TypeAdapter, ValidationError

from ..config.help import make_parser
from ..core.callers.quota import EVERYBODY, LIMITS, MOST, Limit, Quota, key_subject, tenant_subject
from ..core.errors import invalid_field
from ..store.adapters.refs import check_name
from ..store.quotas import QuotaTable
from .audit import record_command
from .maintenance import add_state_options, open_database, state_settings

HELP: dict[Limit, str] = {
    "requests_per_minute": "Calls of any kind.",
    "tokens_per_minute": "Prompt and generated tokens; max_tokens is taken first, what is unused comes back.",
    "concurrent": "Generations and scores that are being answered.",
    "queued": "Generations and scores that wait for their first token.",
    "stored_bytes": "Adapters and datasets together, such as 10GiB.",
    "adapters": "Names of adapters.",
    "datasets": "Datasets.",
    "jobs_queued": "Training jobs that are queued or paused.",
    "jobs_running": "Training jobs at work; others wait.",
    "training_tokens_per_day": "Tokens trained on in a day of UTC; then jobs wait for the next day.",
}
DEFAULT = "default"
"""What commands call the limits of everybody."""


def quotas_command(argv: Sequence[str]) -> int:
    """Limit what tenants and keys may ask for and keep.

    Running servers on the same database follow within two seconds.
    A tenant that has no limit of its own has the one set with --default.
    The limits of a key hold beside those of its tenant.
    """
    parser = make_parser("loramux quotas", quotas_command.__doc__)
    commands = parser.add_subparsers(title="Commands", metavar="COMMAND", required=True)
    _add_set(commands)
    _add_list(commands)
    arguments = parser.parse_args(argv)
    return int(arguments.run(arguments))


def _add_set(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    text = """Set limits of everybody, a tenant or a key.

    Those that are not named stay as they are; the word none in place of a number removes one.
    A database is made where there is none, so that limits hold from the first call on.
    """
    parser = make_parser("loramux quotas set", text, of=commands, name="set")
    whose = parser.add_mutually_exclusive_group(required=True)
    whose.add_argument("--default", action="store_true", help="Every tenant that has no limit of its own.")
    whose.add_argument("--tenant", metavar="NAME", help="One tenant.")
    whose.add_argument("--key", metavar="ID", help="One key; it can have the first four limits.")
    for limit in LIMITS:
        metavar = "SIZE" if limit == "stored_bytes" else "N"
        parser.add_argument(_flag(limit), metavar=metavar, help=HELP[limit])
    add_state_options(parser)
    parser.set_defaults(run=_set)


def _add_list(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = make_parser("loramux quotas ls", "List all limits that are set.", of=commands, name="ls")
    add_state_options(parser)
    parser.set_defaults(run=_list)


def _set(arguments: argparse.Namespace) -> int:
    subject = _subject(arguments)
    changes = {limit: _value(limit, text) for limit in LIMITS if (text := getattr(arguments, limit)) is not None}
    if not changes:
        raise invalid_field("limits", f"name one at least, such as {_flag(LIMITS[0])} 60")
    settings = state_settings(arguments)
    with closing(open_database(settings, make=True)) as database:
        quota = QuotaTable(database).set(subject, changes)
    said = {limit: "none" if value is None else str(value) for limit, value in changes.items()}
    record_command(settings, "quotas set", _shown(subject), tenant=arguments.tenant or "", **said)
    print(json.dumps(_row(subject, quota), indent=2) if arguments.json else _line(subject, quota))
    return 0


def _list(arguments: argparse.Namespace) -> int:
    with closing(open_database(state_settings(arguments))) as database:
        quotas = QuotaTable(database).read().by_subject
    if arguments.json:
        print(json.dumps([_row(subject, quotas[subject]) for subject in sorted(quotas)], indent=2))
    for subject in () if arguments.json else sorted(quotas):
        print(_line(subject, quotas[subject]))
    return 0


def _subject(arguments: argparse.Namespace) -> str:
    if arguments.default:
        return EVERYBODY
    if arguments.tenant is not None:
        return tenant_subject(check_name(arguments.tenant, "--tenant"))
    return key_subject(check_name(arguments.key, "--key"))


def _value(limit: Limit, text: str) -> int | None:
    if text == "none":
        return None
    try:
        value = int(TypeAdapter(ByteSize).validate_python(text)) if limit == "stored_bytes" else int(text)
    except (ValueError, ValidationError):
        value = -1
    if not 0 <= value <= MOST:
        what = "a size such as 10GiB" if limit == "stored_bytes" else "a whole number"
        raise invalid_field(_flag(limit), f"is {text[:80]!r}; give {what} from 0 to 2^53, or none to remove the limit")
    return value


def _flag(limit: Limit) -> str:
    return f"--{limit.replace('_', '-')}"


def _shown(subject: str) -> str:
    return DEFAULT if subject == EVERYBODY else subject


def _row(subject: str, quota: Quota) -> dict[str, object]:
    return {"subject": _shown(subject), "limits": dict(quota.limits)}


def _line(subject: str, quota: Quota) -> str:
    limits = " ".join(f"{limit.replace('_', '-')}={value}" for limit, value in quota.limits.items())
    return f"{_shown(subject)}: {limits or 'no limits'}"
