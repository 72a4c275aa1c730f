"""``loramux keys``: API keys, in the database of a server that runs or does not."""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import TypeAlias

from ..config.help import make_parser
from ..core.callers.keys import ApiKey
from ..core.callers.principal import Scope
from ..store.adapters.refs import check_name
from ..store.keys import KeyRecord, KeyTable
from .audit import command_line_user, record_command
from .maintenance import add_state_options, open_database, state_settings

DEFAULT_SCOPES = (Scope.INFER, Scope.READ_ADAPTERS)
LIFETIMES = "30d, 12h, 90m, 8w, or a date such as 2027-03-31 (UTC)"
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def keys_command(argv: Sequence[str]) -> int:
    """Create, list and revoke API keys.

    Running servers on the same database follow within two seconds.
    A server without a single key is open to everybody; the first one closes it, and a key that is revoked counts.
    """
    parser = make_parser("loramux keys", keys_command.__doc__)
    commands = parser.add_subparsers(title="Commands", metavar="COMMAND", required=True)
    _add_create(commands)
    _add_list(commands)
    _add_revoke(commands)
    _add_generate(commands)
    arguments = parser.parse_args(argv)
    return int(arguments.run(arguments))


def _add_create(commands: Commands) -> None:
    text = """Create a key of a tenant and print it, once: only the SHA-256 of its secret is stored.

    A database is made where there is none, so that a server need not be open before it has a key.
    """
    parser = make_parser("loramux keys create", text, of=commands, name="create")
    parser.add_argument("--tenant", required=True, metavar="NAME", help="Whose adapters, datasets and jobs it sees.")
    parser.add_argument(
        "--scope",
        action="append",
        type=_scope,
        metavar="SCOPE",
        help=f"What it may do, one of {', '.join(Scope)}; may be repeated.  [default: {', '.join(DEFAULT_SCOPES)}]",
    )
    parser.add_argument(
        "--adapter", action="append", metavar="NAME", help="Adapter that it may use, and no others; may be repeated."
    )
    parser.add_argument("--expires", type=_expiry, metavar="TIME", help=f"When it ends: {LIFETIMES}.  [default: never]")
    parser.add_argument("--name", default="", metavar="TEXT", help="What you call it.")
    add_state_options(parser)
    parser.set_defaults(run=_create)


def _add_list(commands: Commands) -> None:
    text = "List keys, those that expired or were revoked too."
    parser = make_parser("loramux keys ls", text, of=commands, name="ls")
    parser.add_argument("--tenant", metavar="NAME", help="Only keys of this tenant.")
    add_state_options(parser)
    parser.set_defaults(run=_list)


def _add_revoke(commands: Commands) -> None:
    text = "Take keys back for good; their calls under way end."
    parser = make_parser("loramux keys revoke", text, of=commands, name="revoke")
    parser.add_argument("ids", nargs="+", metavar="ID", help="Key to revoke.")
    add_state_options(parser)
    parser.set_defaults(run=_revoke)


def _add_generate(commands: Commands) -> None:
    text = "Print a new key that is stored nowhere: for a file of loramux serve --bootstrap-key."
    parser = make_parser("loramux keys generate", text, of=commands, name="generate")
    parser.set_defaults(run=_generate)


def _create(arguments: argparse.Namespace) -> int:
    check_name(arguments.tenant, "--tenant")
    for name in arguments.adapter or ():
        check_name(name, "--adapter")
    settings = state_settings(arguments)
    key = ApiKey.generate()
    with closing(open_database(settings, make=True)) as database:
        record = KeyTable(database).create(
            key,
            arguments.tenant,
            arguments.scope or DEFAULT_SCOPES,
            adapters=arguments.adapter,
            expires=arguments.expires,
            name=arguments.name,
            creator=command_line_user(),
        )
    told = {
        "scopes": " ".join(record.scopes),
        "adapters": " ".join(record.adapters or ()),
        "expires": _time(record.expires),
    }
    told = {name: text for name, text in told.items() if text}
    record_command(settings, "keys create", record.id, tenant=record.tenant, **told)
    if arguments.json:
        print(json.dumps({"key": key.text, **_row(record)}, indent=2))
        return 0
    print(key.text, flush=True)
    _say(f"Key {record.id} of tenant {record.tenant} may {', '.join(record.scopes)}{_narrowed(record)}.")
    _say("It is shown only now. Use it with Client(api_key=...), loramux --api-key or LORAMUX_API_KEY.")
    if record.revision == 1:
        _say("It is the first key: within two seconds running servers ask every caller for one.")
    return 0


def _list(arguments: argparse.Namespace) -> int:
    with closing(open_database(state_settings(arguments))) as database:
        records = KeyTable(database).list(arguments.tenant)
    if arguments.json:
        print(json.dumps([_row(record) for record in records], indent=2))
        return 0
    from loramux.cli.tables import print_table

    now = time.time()
    columns = ("ID", "TENANT", "STATE", "SCOPES", "ADAPTERS", "EXPIRES", "NAME")
    rows = [
        (
            record.id,
            record.tenant,
            record.state(now).value,
            " ".join(record.scopes),
            "all" if record.adapters is None else " ".join(record.adapters),
            _time(record.expires) or "never",
            record.name,
        )
        for record in records
    ]
    print_table(columns, rows)
    return 0


def _revoke(arguments: argparse.Namespace) -> int:
    settings = state_settings(arguments)
    with closing(open_database(settings)) as database:
        table = KeyTable(database)
        for key_id in arguments.ids:
            record = table.revoke(key_id)
            record_command(settings, "keys revoke", record.id, tenant=record.tenant)
            if not arguments.json:
                print(f"Key {record.id} of tenant {record.tenant} is revoked; servers refuse it within two seconds.")
        if arguments.json:
            revoked = [record for record in table.list() if record.id in arguments.ids]
            print(json.dumps([_row(record) for record in revoked], indent=2))
    return 0


def _generate(arguments: argparse.Namespace) -> int:
    print(ApiKey.generate().text, flush=True)
    _say("It opens nothing yet: start servers with --bootstrap-key FILE, where the file holds this line.")
    return 0


def _scope(text: str) -> Scope:
    try:
        return Scope(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no scope; give one of {', '.join(Scope)}") from None


def _expiry(text: str) -> float:
    """The end of a key's life as seconds since the epoch. Raises ArgumentTypeError."""
    now = datetime.now(UTC)
    try:
        if found := re.fullmatch(r"(\d{1,9})([smhdw])", text):
            moment = now + timedelta(**{_UNITS[found[2]]: int(found[1])})
        else:
            moment = datetime.fromisoformat(text)
            moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(f"{text!r} is no time; give {LIFETIMES}") from None
    if moment <= now:
        raise argparse.ArgumentTypeError(f"{text!r} is not in the future; give {LIFETIMES}")
    return moment.timestamp()


def _time(seconds: float | None) -> str:
    return (
        "" if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(" ", "seconds").replace("+00:00", "Z")
    )


def _narrowed(record: KeyRecord) -> str:
    only = "" if record.adapters is None else f", with the adapters {', '.join(record.adapters)} only"
    return only + (f", until {_time(record.expires)}" if record.expires else "")


def _row(record: KeyRecord) -> dict[str, object]:
    return {
        "id": record.id,
        "tenant": record.tenant,
        "state": record.state(time.time()).value,
        "scopes": list(record.scopes),
        "adapters": None if record.adapters is None else list(record.adapters),
        "name": record.name,
        "creator": record.creator,
        "created": record.created,
        "expires": record.expires,
        "revoked": record.revoked,
    }


def _say(text: str) -> None:
    print(text, file=sys.stderr)
