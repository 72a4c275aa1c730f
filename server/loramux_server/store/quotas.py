"""Quotas: the limits that an operator set, and the checks of what is stored, in the transaction that stores it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import msgspec
import sqlalchemy as sa
from sqlalchemy import Connection

from ..core.callers.quota import EVERYBODY, Limit, Quota, Quotas, check_changes, exceeded, tenant_subject
from ..core.callers.usage import day_of
from ..core.jobs import JobState
from .database import Database, read_values
from .keys import exists, key_not_found
from .records import SHARED, UploadState, VersionState
from .schema import adapter_versions as v
from .schema import adapters as a
from .schema import datasets as d
from .schema import jobs as j
from .schema import quotas as q
from .schema import uploads as up
from .schema import usage as u

_LIVE = v.c.state != VersionState.DELETED.value
_WAITING = (JobState.QUEUED.value, JobState.PAUSED.value)


class QuotaTable:
    """The limits of all subjects. Thread-safe."""

    def __init__(self, database: Database, now: Callable[[], float] = time.time) -> None:
        self._db, self._now = database, now

    def set(self, subject: str, changes: Mapping[Limit, int | None]) -> Quota:
        """Change limits of a subject, None removing one; gives all that it has now.

        ``subject`` is ``*``, ``tenant:NAME`` or ``key:ID``. Raises INVALID_ARGUMENT for what it cannot have, NOT_FOUND
        for a key that was never created.
        """
        check_changes(subject, changes)
        kind, _, id = subject.partition(":")
        with self._db.write("quota") as connection:
            if kind == "key" and not exists(connection, id):
                raise key_not_found(id)
            row = connection.execute(sa.select(q).where(q.c.subject == subject)).first()
            limits = {**(row.limits if row is not None else {}), **changes}
            quota = _quota({name: value for name, value in limits.items() if value is not None})
            values = {"limits": msgspec.to_builtins(quota), "revision": _revision(connection) + 1}
            if row is None:
                connection.execute(q.insert().values(subject=subject, **values))
            else:
                # A row without limits stays: its revision tells servers that there was a change.
                connection.execute(q.update().where(q.c.subject == subject).values(**values))
        return quota

    def read(self) -> Quotas:
        """All limits."""
        return self.changed(-1)[1]

    def changed(self, revision: int) -> tuple[int, Quotas]:
        """The revision of now, with the limits if it is another than ``revision`` (none of them otherwise)."""
        with self._db.read() as connection:
            now = _revision(connection)
            rows = connection.execute(sa.select(q)).all() if now != revision else []
        return now, Quotas({row.subject: quota for row in rows if (quota := _quota(row.limits)).limits})

    def check_announced(self, tenant: str, least: int, most: int) -> None:
        """Raise RESOURCE_EXHAUSTED unless a tenant may store an upload that has ``least`` to ``most`` bytes.

        It is only a first look, before any byte has come. What has the size of something stored may be that very
        thing, which takes nothing: it is let through to the check that knows.
        """
        with self._db.read() as connection:
            quota = held(connection, tenant)
            if quota.stored_bytes is None:
                return
            versions = sa.select(v.c.id).join(a, a.c.id == v.c.adapter_id).where(a.c.owner == tenant, _LIVE)
            data = sa.select(d.c.id).where(d.c.owner == tenant)
            for query, size in ((versions, v.c.size_bytes), (data, d.c.size_bytes)):
                if connection.execute(query.where(size.between(least, most)).limit(1)).first() is not None:
                    return
            _check_bytes(connection, tenant, quota, least)

    def spent(self, tenant: str) -> str:
        """Why no job of a tenant may train before tomorrow; empty: they may."""
        with self._db.read() as connection:
            return spent(connection, tenant, held(connection, tenant), self._now())


def held(connection: Connection, tenant: str) -> Quota:
    """The limits of a tenant, as of this transaction."""
    subjects = [tenant_subject(tenant), EVERYBODY]
    rows = connection.execute(sa.select(q).where(q.c.subject.in_(subjects)))
    return Quotas({row.subject: _quota(row.limits) for row in rows}).tenant(tenant)


def check_adapter(connection: Connection, tenant: str, adapter: int, size: int) -> None:
    """Raise RESOURCE_EXHAUSTED unless a tenant may store another version, of ``size`` bytes, of its ``adapter``.

    ``adapter`` is a row's id; one without versions is a new name.
    """
    if tenant == SHARED:
        return  # the operator's
    quota = held(connection, tenant)
    if quota.adapters is not None and not _has_versions(connection, adapter):
        _refuse_above(tenant, "adapters", quota.adapters, _adapters(connection, tenant))
    _check_bytes(connection, tenant, quota, size)


def check_dataset(connection: Connection, tenant: str, size: int) -> None:
    """Raise RESOURCE_EXHAUSTED unless a tenant may store another dataset of ``size`` bytes."""
    quota = held(connection, tenant)
    if quota.datasets is not None:
        count = connection.scalar(sa.select(sa.func.count()).select_from(d).where(d.c.owner == tenant))
        _refuse_above(tenant, "datasets", quota.datasets, int(count or 0))
    _check_bytes(connection, tenant, quota, size)


def check_job(connection: Connection, tenant: str) -> None:
    """Raise RESOURCE_EXHAUSTED unless a tenant may have another job in the queue."""
    limit = held(connection, tenant).jobs_queued
    if limit is not None:
        count = sa.select(sa.func.count()).select_from(j).where(j.c.owner == tenant, j.c.state.in_(_WAITING))
        _refuse_above(tenant, "jobs_queued", limit, int(connection.scalar(count) or 0))


def resting(connection: Connection, at_work: tuple[JobState, ...], now: float) -> dict[str, str]:
    """Tenants with queued jobs none of which may start now, each with the reason."""
    owners = connection.scalars(sa.select(j.c.owner).where(j.c.state == JobState.QUEUED.value).distinct()).all()
    quotas = Quotas({row.subject: _quota(row.limits) for row in connection.execute(sa.select(q))}) if owners else None
    found = {}
    for owner in owners:
        assert quotas is not None
        quota = quotas.tenant(owner)
        reason = spent(connection, owner, quota, now)
        if not reason and quota.jobs_running is not None:
            states = [state.value for state in at_work]
            busy = sa.select(sa.func.count()).select_from(j).where(j.c.owner == owner, j.c.state.in_(states))
            if (running := int(connection.scalar(busy) or 0)) >= quota.jobs_running:
                reason = f"waits: {running} jobs of the tenant are at work, and its quota is {quota.jobs_running}"
        if reason:
            found[owner] = reason
    return found


def spent(connection: Connection, tenant: str, quota: Quota, now: float) -> str:
    """Why no job of a tenant may train before tomorrow; empty: they may."""
    limit = quota.training_tokens_per_day
    if limit is None or (tokens := trained_today(connection, tenant, now)) < limit:
        return ""
    tomorrow = day_of(now + 86_400)
    return f"waits until {tomorrow} (UTC): {tokens} tokens were trained on today, and the tenant's quota is {limit}"


def trained_today(connection: Connection, tenant: str, now: float) -> int:
    """Tokens that a tenant's jobs were trained on in the day of UTC that ``now`` is in."""
    query = sa.select(sa.func.sum(u.c.trained_tokens)).where(u.c.day == day_of(now), u.c.tenant == tenant)
    return int(connection.scalar(query) or 0)


def _check_bytes(connection: Connection, tenant: str, quota: Quota, size: int) -> None:
    if quota.stored_bytes is None:
        return
    versions = (
        sa.select(sa.func.sum(v.c.size_bytes)).join(a, a.c.id == v.c.adapter_id).where(a.c.owner == tenant, _LIVE)
    )
    data = sa.select(sa.func.sum(d.c.size_bytes)).where(d.c.owner == tenant)
    coming = sa.select(sa.func.sum(up.c.size_bytes)).where(
        up.c.owner == tenant, up.c.state == UploadState.PENDING.value
    )
    used = sum(int(connection.scalar(query) or 0) for query in (versions, data, coming))
    _refuse_above(tenant, "stored_bytes", quota.stored_bytes, used, size)


def _refuse_above(tenant: str, limit: Limit, allowed: int, used: int, asked: int = 1) -> None:
    if used + asked > allowed:
        raise exceeded(tenant_subject(tenant), limit, allowed, used, asked=asked)


def _has_versions(connection: Connection, adapter: int) -> bool:
    return connection.scalar(sa.select(v.c.id).where(v.c.adapter_id == adapter, _LIVE).limit(1)) is not None


def _adapters(connection: Connection, tenant: str) -> int:
    named = sa.exists().where(v.c.adapter_id == a.c.id, _LIVE)
    return int(connection.scalar(sa.select(sa.func.count()).select_from(a).where(a.c.owner == tenant, named)) or 0)


def _revision(connection: Connection) -> int:
    return int(connection.scalar(sa.select(sa.func.max(q.c.revision))) or 0)


def _quota(limits: Mapping[str, int]) -> Quota:
    return read_values(dict(limits), Quota)
