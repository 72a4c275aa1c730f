"""What calls use of quotas over all servers of a database: levels of buckets, and counts by server.

Nothing here must last: rows are what servers tell each other, and each of them could go on without.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import cast

import sqlalchemy as sa
from sqlalchemy import Connection
from sqlalchemy.dialects import postgresql, sqlite

from ..core.callers.quota import Limit
from ..core.callers.quota_use import Counts, Heard, Level, News
from .database import Database
from .schema import quota_levels as lv
from .schema import quota_servers as s

LAPSE_SECONDS = 10.0
"""A server that has told nothing for so long is taken for dead: its calls do not count any more."""
SLACK_SECONDS = 5.0
"""Levels are read again that are older by so much than the last reading: steps of the clock make nobody miss one."""
KEEP_SECONDS = 180.0
"""After so long without a change a bucket is full again, and its row goes."""
SWEEP_SECONDS = 60.0


class QuotaUse:
    """The levels and counts of all servers. Thread-safe."""

    def __init__(self, database: Database, clock: Callable[[Connection], float] | None = None) -> None:
        self._db, self._clock = database, clock or database_clock
        self._swept: float | None = None

    def reconcile(self, server: str, news: News | None, since: float | None) -> Heard:
        """Tell ``news`` of a server, if there are any, and hear of the others, in one transaction.

        ``since`` is the time of the last reconciliation, None before the first: older levels are known.
        """
        with self._open(news) as connection:
            now = self._clock(connection)
            if news is not None:
                _tell(connection, server, news, now)
                self._sweep(connection, now)
            return _hear(connection, server, now, since)

    def leave(self, server: str, news: News) -> None:
        """Tell the last news of a server that stops, and forget it."""
        with self._db.write() as connection:
            _tell(connection, server, news, self._clock(connection))
            connection.execute(s.delete().where(s.c.id == server))

    def _open(self, news: News | None) -> AbstractContextManager[Connection]:
        return self._db.read() if news is None else self._db.write("quota_use")

    def _sweep(self, connection: Connection, now: float) -> None:
        if self._swept is not None and abs(now - self._swept) < SWEEP_SECONDS:
            return
        self._swept = now
        for table in (lv, s):
            # What lies in the future was written before the clock was put back.
            connection.execute(table.delete().where(~table.c.at.between(now - KEEP_SECONDS, now + KEEP_SECONDS)))


def database_clock(connection: Connection) -> float:
    """Seconds since the epoch by the one clock that all servers of a database share.

    Whoever shares a file of SQLite is on its host.
    """
    if connection.dialect.name == "sqlite":
        return time.time()
    return float(connection.scalar(sa.text("SELECT extract(epoch FROM clock_timestamp())")) or 0.0)


def _tell(connection: Connection, server: str, news: News, now: float) -> None:
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    mine = insert(s).values(id=server, at=now, counts=dict(news.counts))
    changes = {"at": mine.excluded.at, "counts": mine.excluded.counts}
    connection.execute(mine.on_conflict_do_update(index_elements=[s.c.id], set_=changes))
    if not news.taken:
        return
    rows = insert(lv)
    taken, least, per_second = (sa.bindparam(name, type_=sa.Float) for name in ("taken", "least", "per_second"))
    passed = _greater(rows.excluded.at - lv.c.at, sa.literal(0.0))
    # The rows belong to this transaction: writers take turns.
    together = _greater(lv.c.used - passed * per_second + taken, least)
    connection.execute(
        rows.on_conflict_do_update(
            index_elements=list(lv.primary_key), set_={"used": together, "at": rows.excluded.at}
        ),
        [
            {
                "subject": each.subject,
                "rate": each.rate,
                "used": each.used,
                "at": now,
                "taken": each.taken,
                "least": each.least,
                "per_second": each.per_minute / 60.0,
            }
            for each in news.taken
        ],
    )


def _hear(connection: Connection, server: str, now: float, since: float | None) -> Heard:
    lately = s.c.at.between(now - LAPSE_SECONDS, now + LAPSE_SECONDS)
    others = connection.execute(sa.select(s.c.counts).where(s.c.id != server, lately)).all()
    levels = sa.select(lv)
    if since is not None and since <= now:
        levels = levels.where(lv.c.at >= since - SLACK_SECONDS)
    counts: dict[str, Counts] = {}
    for row in others:
        for subject, found in cast("Mapping[str, list[int]]", row.counts).items():
            counts[subject] = counts.get(subject, Counts()).plus(Counts(*found))
    return Heard(
        now,
        len(others),
        counts,
        tuple(
            Level(row.subject, cast("Limit", row.rate), row.used, max(0.0, now - row.at))
            for row in connection.execute(levels)
        ),
    )


def _greater(one: sa.ColumnElement[float], other: sa.ColumnElement[float]) -> sa.ColumnElement[float]:
    """Of two numbers, in the words of every database."""
    return sa.case((one > other, one), else_=other)
