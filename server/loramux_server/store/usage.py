"""What tenants used: added up by day, tenant, adapter and method, each flush exactly once, and read back in groups."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection
from sqlalchemy.dialects import postgresql, sqlite

from ..core.callers.usage import (
    AMOUNTS,
    Amounts,
    Dimension,
    UsageByKey,
    UsageKey,
    UsageMethod,
    UsageQuery,
    UsageRow,
    is_word,
)
from ..core.types import BASE_NAME
from ..telemetry.labels import OTHER, adapter_label
from .database import Database, read_row
from .paging import check_page_size, make_token, read_token, unknown_token
from .records import SHARED, VersionState
from .schema import adapter_versions as v
from .schema import adapters as a
from .schema import usage as u
from .schema import usage_flushes as f

MOST_STACKS = 1000
"""Stacks of several adapters with rows of their own, for each tenant and day; further ones share ``_other``.

Adapters by themselves are bounded by how many are published, but of stacks there are as many as a caller invents.
"""
KEEP_FLUSHES = 90 * 86_400.0
"""Seconds that the last flush of a process is remembered: longer than any goes on trying the same one."""


class UsageTable:
    """The usage of all tenants. Thread-safe."""

    def __init__(self, database: Database, now: Callable[[], float]) -> None:
        self._db, self._now = database, now

    def add(self, run: str, sequence: int, amounts: UsageByKey) -> None:
        """Add a flush of a server's process, unless it is there already; durable on return.

        After an error nobody knows whether it was committed: the caller tries the same one again. ``run`` names the
        process, and ``sequence`` rises with each of its flushes.
        """
        now = self._now()
        with self._db.write("usage") as connection:
            done = connection.scalar(sa.select(f.c.sequence).where(f.c.run == run))
            if done is not None and done >= sequence:
                return
            if done is None:
                connection.execute(f.insert().values(run=run, sequence=sequence, at=now))
                connection.execute(f.delete().where(f.c.at < now - KEEP_FLUSHES))
            else:
                connection.execute(f.update().where(f.c.run == run).values(sequence=sequence, at=now))
            add_usage(connection, amounts)

    def read(self, query: UsageQuery, page_size: int, page_token: str = "") -> tuple[tuple[UsageRow, ...], str]:
        """A page of groups in order of their dimensions, and the token of the next page (empty: none)."""
        check_page_size(page_size)
        grouped = [dimension for dimension in Dimension if dimension in query.group_by]
        after = _read_token(page_token, len(grouped))
        if after and grouped[:1] == [Dimension.DAY]:
            query = replace(query, since=max(query.since, _day(after[0])))  # the days before are behind the reader
        parts = [part for part in (_spent(query), _stored(query, self._now())) if part is not None]
        both = sa.union_all(*parts).subquery()
        keys = [both.c[dimension.value] for dimension in grouped]
        sums = [sa.cast(sa.func.sum(both.c[name]), sa.BigInteger).label(name) for name in AMOUNTS]
        hours = (sa.func.sum(both.c.seconds) / 3600.0).label("adapter_hours")
        # Without a group there is one row, of totals, even where nothing was used.
        statement: sa.Select[Any] = sa.select(*keys, *sums, hours).group_by(*keys).order_by(*keys).limit(page_size + 1)
        if after:
            statement = statement.where(sa.tuple_(*keys) > sa.tuple_(*after))
        with self._db.read() as connection:
            found = connection.execute(statement).all()
        rows = tuple(read_row(row, UsageRow) for row in found[:page_size])
        more = len(found) > page_size
        return rows, make_token(json.dumps([getattr(rows[-1], key.name) for key in keys])) if more else ""


def add_usage(connection: Connection, amounts: UsageByKey) -> None:
    """Add amounts in the caller's transaction, whose writer no other writes beside."""
    if not amounts:
        return
    insert = postgresql.insert(u) if connection.dialect.name == "postgresql" else sqlite.insert(u)
    sums = {name: u.c[name] + insert.excluded[name] for name in AMOUNTS}
    connection.execute(
        insert.on_conflict_do_update(index_elements=list(u.primary_key), set_=sums),
        [
            {"day": key.day, "tenant": key.tenant, "adapter": key.adapter, "method": key.method.value}
            | {name: getattr(amount, name) for name in AMOUNTS}
            for key, amount in _bounded(connection, amounts).items()
        ],
    )


def _bounded(connection: Connection, amounts: UsageByKey) -> UsageByKey:
    """The amounts, with those of stacks that are too many under ``_other``."""
    new: dict[tuple[str, str], set[str]] = defaultdict(set)
    for key in amounts:
        if "+" in key.adapter:
            new[key.day, key.tenant].add(key.adapter)
    others: set[tuple[str, str, str]] = set()
    for (day, tenant), labels in new.items():
        stacks = (
            sa.select(u.c.adapter).distinct().where(u.c.day == day, u.c.tenant == tenant, u.c.adapter.contains("+"))
        )
        known = set(connection.scalars(stacks))
        room = max(0, MOST_STACKS - len(known))
        others |= {(day, tenant, label) for label in sorted(labels - known)[room:]}
    if not others:
        return amounts
    found: dict[UsageKey, Amounts] = {}
    for key, amount in amounts.items():
        if (key.day, key.tenant, key.adapter) in others:
            key = replace(key, adapter=OTHER)
        found[key] = found.get(key, Amounts()) + amount
    return found


def _spent(query: UsageQuery) -> sa.Select[Any]:
    """What requests and jobs used."""
    columns = [u.c.day, u.c.tenant, u.c.adapter, u.c.method, *(u.c[name] for name in AMOUNTS)]
    within = sa.and_(u.c.day >= query.since.isoformat(), u.c.day < query.until.isoformat())
    return sa.select(*columns, sa.literal(0.0).label("seconds")).where(within, *_wanted(query, u.c))


def _stored(query: UsageQuery, now: float) -> sa.Select[Any] | None:
    """The seconds of each version that was stored; None where nothing in the query can be."""
    times = _times(query, now)
    if not times or (query.methods is not None and UsageMethod.STORE not in query.methods):
        return None
    columns = (sa.column("day", sa.String), sa.column("begin", sa.Float), sa.column("end", sa.Float))
    days = sa.values(*columns).data(times).cte("days")
    begin = sa.case((v.c.created > days.c.begin, v.c.created), else_=days.c.begin)
    end = sa.case((v.c.deleted < days.c.end, v.c.deleted), else_=days.c.end)
    named = {
        "day": days.c.day,
        "tenant": a.c.owner.label("tenant"),
        "adapter": sa.case((a.c.name == BASE_NAME, adapter_label(BASE_NAME)), else_=a.c.name).label("adapter"),
        "method": sa.literal(UsageMethod.STORE.value).label("method"),
    }
    nothing = [sa.literal(0).label(name) for name in AMOUNTS]
    there = sa.or_(v.c.deleted > days.c.begin, v.c.deleted.is_(None) & (v.c.state != VersionState.DELETED.value))
    return (
        sa.select(*named.values(), *nothing, (end - begin).label("seconds"))
        .select_from(v.join(a, a.c.id == v.c.adapter_id).join(days, sa.and_(v.c.created < days.c.end, there)))
        .where(a.c.owner != SHARED, begin < end, *_wanted(replace(query, methods=None), named))
    )


def _times(query: UsageQuery, now: float) -> list[tuple[str, float, float]]:
    """The days of a query, each with its begin and end; the whole time at once where days are not told apart.

    None of it is later than now.
    """
    days = [query.since, query.until]
    if Dimension.DAY in query.group_by:
        days = [query.since + timedelta(days=number) for number in range((query.until - query.since).days + 1)]
    starts = [min(now, datetime.combine(day, time.min, UTC).timestamp()) for day in days]
    found = zip((day.isoformat() for day in days), starts, starts[1:], strict=False)
    return [(day, begin, end) for day, begin, end in found if begin < end]


def _wanted(query: UsageQuery, columns: Any) -> Iterator[sa.ColumnElement[bool]]:
    """The conditions of a query but for its time."""
    if query.tenants is not None:
        yield columns["tenant"].in_(query.tenants)
    if query.adapter:
        # Between signs, so that the name is no part of another; names have no pattern's characters but the underscore.
        yield ("+" + columns["adapter"] + "+").contains(f"+{query.adapter}+", autoescape=True)
    if query.labels is not None:
        yield columns["adapter"].in_(query.labels)
    if query.methods is not None:
        yield columns["method"].in_([method.value for method in query.methods])


def _read_token(token: str, count: int) -> list[str]:
    """The key that a page ended with; empty: the first page is asked for. INVALID_ARGUMENT for what we never made."""
    if (text := read_token(token)) is None:
        return []
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        raise unknown_token() from None
    if (
        not isinstance(found, list)
        or len(found) != count
        or not all(isinstance(part, str) and is_word(part) for part in found)
    ):
        raise unknown_token()
    return found


def _day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise unknown_token() from None
