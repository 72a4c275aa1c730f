"""API keys: rows that say whose a key is and what it may do. A secret is never stored, only its SHA-256."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import StrEnum

import sqlalchemy as sa
from sqlalchemy import Connection

from ..core.callers.keys import ApiKey
from ..core.callers.principal import Scope
from ..core.errors import Code, Error, invalid_field
from .adapters.refs import check_name
from .database import Database, read_row
from .schema import api_keys as k

MOST_NAME = 200


class KeyState(StrEnum):
    """Whether a key opens anything."""

    ACTIVE = "active"
    EXPIRED = "expired"
    REVOKED = "revoked"


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """A key that was created. Rows stay for good, so that whoever reads a log knows whose key it was."""

    id: str
    tenant: str
    secret_sha256: str = field(repr=False)
    scopes: tuple[Scope, ...]
    created: float
    revision: int
    """Rises with every change of any key: whoever follows the table asks for what is beyond the last one."""
    adapters: tuple[str, ...] | None = None
    """Names of the adapters that it may use; None: all that the tenant may."""
    name: str = ""
    """What people call it."""
    creator: str = ""
    expires: float | None = None
    revoked: float | None = None

    def state(self, now: float) -> KeyState:
        """Whether it opens anything at ``now``."""
        if self.revoked is not None:
            return KeyState.REVOKED
        return KeyState.EXPIRED if self.expires is not None and self.expires <= now else KeyState.ACTIVE


class KeyTable:
    """The keys of all tenants. Thread-safe; every change is durable on return."""

    def __init__(self, database: Database, now: Callable[[], float] = time.time) -> None:
        self._db, self._now = database, now

    def create(
        self,
        key: ApiKey,
        tenant: str,
        scopes: Iterable[Scope],
        *,
        adapters: Iterable[str] | None = None,
        expires: float | None = None,
        name: str = "",
        creator: str = "",
    ) -> KeyRecord:
        """Let ``key`` act for a tenant. The same key again gives the record that it has, whatever became of it.

        Raises INVALID_ARGUMENT for a name that is none, ALREADY_EXISTS when another secret has the id.
        """
        values = {
            "id": key.id,
            "tenant": check_name(tenant, "tenant"),
            "secret_sha256": key.digest,
            "scopes": sorted(set(scopes)),
            "adapters": None if adapters is None else sorted({check_name(each, "adapter") for each in adapters}),
            "name": _check_text(name),
            "creator": creator[:100],
            "created": self._now(),
            "expires": expires,
        }
        if not values["scopes"]:
            raise invalid_field("scope", "is missing: a key without a scope opens nothing")
        with self._db.write("key") as connection:
            known = _record(connection, key.id)
            if known is None:
                connection.execute(k.insert().values(**values, revision=_next_revision(connection)))
                known = _record(connection, key.id)
        assert known is not None
        if known.secret_sha256 != key.digest:
            raise Error(
                Code.ALREADY_EXISTS, f"another key has the id {key.id!r}; give this one another id", reason="KEY_EXISTS"
            )
        return known

    def get(self, key_id: str) -> KeyRecord | None:
        """The key with an id; None: there is none."""
        with self._db.read() as connection:
            return _record(connection, key_id)

    def revoke(self, key_id: str) -> KeyRecord:
        """Take a key back for good; harmless twice. Raises NOT_FOUND."""
        with self._db.write("key") as connection:
            known = _record(connection, key_id)
            if known is None:
                raise key_not_found(key_id)
            if known.revoked is None:
                changes = {"revoked": self._now(), "revision": _next_revision(connection)}
                connection.execute(k.update().where(k.c.id == key_id).values(**changes))
                known = _record(connection, key_id)
        assert known is not None
        return known

    def list(self, tenant: str | None = None) -> tuple[KeyRecord, ...]:
        """All keys, or those of a tenant, oldest first."""
        query = sa.select(k).order_by(k.c.created, k.c.id)
        with self._db.read() as connection:
            rows = connection.execute(query if tenant is None else query.where(k.c.tenant == tenant)).all()
        return tuple(read_row(row, KeyRecord) for row in rows)

    def changed_since(self, revision: int) -> tuple[tuple[KeyRecord, ...], int]:
        """The keys that were created or revoked after ``revision``, and the revision that the table is at.

        That one is lower than ``revision`` only when the database was set back to an earlier state.
        """
        with self._db.read() as connection:
            rows = connection.execute(sa.select(k).where(k.c.revision > revision).order_by(k.c.revision)).all()
            newest = _newest_revision(connection)
        return tuple(read_row(row, KeyRecord) for row in rows), newest


def key_not_found(key_id: str) -> Error:
    """NOT_FOUND for the id of a key that was never created."""
    words = f"key {key_id[:80]!r} not found (list the keys with: loramux keys ls)"
    return Error(Code.NOT_FOUND, words, reason="KEY_NOT_FOUND")


def exists(connection: Connection, key_id: str) -> bool:
    """Whether a key with this id was ever created."""
    return _record(connection, key_id) is not None


def _record(connection: Connection, key_id: str) -> KeyRecord | None:
    row = connection.execute(sa.select(k).where(k.c.id == key_id)).first()
    return None if row is None else read_row(row, KeyRecord)


def _newest_revision(connection: Connection) -> int:
    return int(connection.scalar(sa.select(sa.func.coalesce(sa.func.max(k.c.revision), 0))) or 0)


def _next_revision(connection: Connection) -> int:
    """The number of the change that this transaction makes: writers take turns, so numbers follow their commits."""
    return _newest_revision(connection) + 1


def _check_text(name: str) -> str:
    if len(name) > MOST_NAME or not name.isprintable():
        raise invalid_field("name", f"must be at most {MOST_NAME} printable characters")
    return name
