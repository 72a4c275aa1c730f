"""When adapter versions were last used: noted in memory at each request, written to the database now and then.

A use is noted at versions of the tenant that made it. Tenants may have the same content and share adapters: when others
use these is not for them to see.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from threading import Lock

import sqlalchemy as sa

from ...core.errors import Error
from ..database import Database
from ..records import VersionRecord
from ..schema import adapter_versions as v
from ..schema import adapters as a

FLUSH_SECONDS = 30.0


class UsageLog:
    """Last use by tenant and digest. Thread-safe. A crash loses at most the last half minute of it."""

    def __init__(self, database: Database, now: Callable[[], float]) -> None:
        self._db, self._now = database, now
        self._lock = Lock()
        self._fresh: dict[tuple[str, str], float] = {}
        self._flushed = now()

    def touch(self, digests: Sequence[str], tenant: str) -> None:
        """Note a use now of each digest by a tenant."""
        now = self._now()
        with self._lock:
            self._fresh.update(dict.fromkeys(((tenant, digest) for digest in digests), now))
            due = now - self._flushed >= FLUSH_SECONDS
        if due:
            with suppress(Error):  # the database is away: the use is still noted, and its user goes on
                self.flush()

    def seen(self, record: VersionRecord) -> VersionRecord:
        """The record with the use that is not written yet, if there is one."""
        with self._lock:
            used = self._fresh.get((record.owner, record.digest))
        return record if used is None else replace(record, last_used=used)

    def flush(self) -> None:
        """Write what is noted."""
        with self._lock:
            fresh, self._fresh, self._flushed = self._fresh, {}, self._now()
        if not fresh:
            return
        try:
            with self._db.write() as connection:
                theirs = sa.select(a.c.id).where(a.c.owner == sa.bindparam("by"))
                connection.execute(
                    v.update()
                    .where(v.c.digest == sa.bindparam("of"), v.c.adapter_id.in_(theirs))
                    .values(last_used=sa.bindparam("at")),
                    [{"by": tenant, "of": digest, "at": at} for (tenant, digest), at in fresh.items()],
                )
        except Error:
            with self._lock:
                self._fresh = {**fresh, **self._fresh}
            raise
