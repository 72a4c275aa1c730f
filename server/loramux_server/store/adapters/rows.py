"""The SQL of the adapter registry: each function runs on a connection that the registry opened."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy import Connection, Row

from ...core.callers.principal import Viewer, may_find, names_of, tenant_of
from ..blobs.blobs import Blob
from ..database import read_row
from ..records import DAMAGED, SHARED, AdapterMeta, VersionRecord, VersionState
from ..schema import adapter_versions as v
from ..schema import adapters as a
from ..schema import aliases as al
from .refs import LATEST

AdapterRow = Row[int, str, str, float]

_LIVE = v.c.state != VersionState.DELETED.value
_HAS_LIVE = sa.exists().where(v.c.adapter_id == a.c.id, _LIVE)
_ADAPTER = sa.select(a.c.id, a.c.owner, a.c.name, a.c.created)
_IS_SHARED = (
    sa.exists()
    .where((same := v.alias()).c.digest == v.c.digest, same.c.state != VersionState.DELETED.value)
    .where(
        (everyones := a.alias()).c.id == same.c.adapter_id, everyones.c.name == a.c.name, everyones.c.owner == SHARED
    )
    .correlate(v, a)
)
_ANY_VERSION = (
    sa.select(v, a.c.name, a.c.owner, (al.c.version.is_not(None)).label("current"), _IS_SHARED.label("shared"))
    .join(a, a.c.id == v.c.adapter_id)
    .outerjoin(al, sa.and_(al.c.adapter_id == v.c.adapter_id, al.c.alias == LATEST, al.c.version == v.c.version))
)
_VERSION = _ANY_VERSION.where(_LIVE)


def visible_adapter(connection: Connection, name: str, viewer: Viewer) -> AdapterRow | None:
    """The adapter that ``name`` means for a viewer: its tenant's, else the shared one; None if neither has versions."""
    # A name that is not on the key's list is asked for all the same, of nobody: it takes the time of an absent one.
    owners = {tenant_of(viewer), SHARED} if may_find(viewer, name) else ()
    # SHARED is the empty text, so it sorts last.
    query = _ADAPTER.where(a.c.name == name, a.c.owner.in_(owners), _HAS_LIVE).order_by(a.c.owner.desc())
    return connection.execute(query.limit(1)).first()


def page(
    connection: Connection, viewer: Viewer, after: str | None, limit: int, prefix: str = ""
) -> Sequence[AdapterRow]:
    """Adapters that a viewer sees, by name, those after ``after`` whose names begin with ``prefix``."""
    query = (
        sa.select(a.c.name, sa.func.max(a.c.owner).label("owner"))
        .where(*_visible(viewer))
        .group_by(a.c.name)
        .order_by(a.c.name)
        .limit(limit)
    )
    if after is not None:
        query = query.where(a.c.name > after)
    if prefix:  # not LIKE, which takes upper case for lower in SQLite
        query = query.where(sa.func.substr(a.c.name, 1, len(prefix)) == prefix)
    seen = query.subquery()
    joined = _ADAPTER.join(seen, sa.and_(seen.c.name == a.c.name, seen.c.owner == a.c.owner)).order_by(a.c.name)
    return connection.execute(joined).all()


def owners(connection: Connection, name: str) -> frozenset[str]:
    """Who has an adapter of this name."""
    return frozenset(connection.scalars(sa.select(a.c.owner).where(a.c.name == name, _HAS_LIVE)))


def count(connection: Connection, viewer: Viewer) -> int:
    """How many names a viewer sees."""
    return int(connection.scalar(sa.select(sa.func.count(a.c.name.distinct())).where(*_visible(viewer))) or 0)


def _visible(viewer: Viewer) -> Iterator[sa.ColumnElement[bool]]:
    yield a.c.owner.in_({tenant_of(viewer), SHARED})
    yield _HAS_LIVE
    if (names := names_of(viewer)) is not None:
        yield a.c.name.in_(names)


def adapter_id(connection: Connection, name: str, owner: str, now: float) -> int:
    """The row of a name, made if there is none."""
    found = connection.scalar(sa.select(a.c.id).where(a.c.name == name, a.c.owner == owner))
    if found is None:
        insert = a.insert().values(name=name, owner=owner, created=now).returning(a.c.id)
        found = connection.execute(insert).scalar_one()
    return int(found)


def version(connection: Connection, adapter: int, number: int) -> Row[Any] | None:
    """One version that is not deleted."""
    return connection.execute(_VERSION.where(v.c.adapter_id == adapter, v.c.version == number)).first()


def version_with_digest(connection: Connection, adapter: int, digest: str) -> Row[Any] | None:
    """The version of an adapter that has this content and is not deleted."""
    return connection.execute(_VERSION.where(v.c.adapter_id == adapter, v.c.digest == digest)).first()


def versions_with(connection: Connection, digests: Collection[str]) -> Sequence[Row[Any]]:
    """Versions of all owners that have one of these contents and are not deleted, oldest first."""
    return connection.execute(_VERSION.where(v.c.digest.in_(digests)).order_by(v.c.id)).all()


def donor(connection: Connection, name: str, number: int | None, digest: str, viewer: Viewer) -> Row[Any] | None:
    """A version with this content that a viewer sees or, now that it is deleted, saw; ``number`` None: the latest."""
    theirs = sa.and_(a.c.name == name, a.c.owner.in_({tenant_of(viewer), SHARED}))
    query = _ANY_VERSION.where(theirs, v.c.digest == digest)
    if number is not None:
        query = query.where(v.c.version == number)
    return connection.execute(query.order_by(a.c.owner.desc(), v.c.version.desc()).limit(1)).first()


def versions(connection: Connection, adapters: Sequence[int]) -> dict[int, list[Row[Any]]]:
    """Versions that are not deleted, by adapter, oldest first."""
    found: dict[int, list[Row[Any]]] = defaultdict(list)
    for row in connection.execute(_VERSION.where(v.c.adapter_id.in_(adapters)).order_by(v.c.version)):
        found[row.adapter_id].append(row)
    return found


def pinned(connection: Connection) -> Sequence[Row[Any]]:
    """All pinned versions."""
    return connection.execute(_VERSION.where(v.c.pinned).order_by(v.c.id)).all()


def alias_rows(connection: Connection, adapters: Sequence[int]) -> dict[int, list[Row[Any]]]:
    """Aliases with the version that each means, and meant before, by adapter."""
    found: dict[int, list[Row[Any]]] = defaultdict(list)
    for row in connection.execute(sa.select(al).where(al.c.adapter_id.in_(adapters)).order_by(al.c.alias)):
        found[row.adapter_id].append(row)
    return found


def aliased(connection: Connection, adapter: int, alias: str) -> int | None:
    """The version that an alias of an adapter means; None if there is no such alias."""
    found: int | None = connection.scalar(
        sa.select(al.c.version).where(al.c.adapter_id == adapter, al.c.alias == alias)
    )
    return found


def live_digests(connection: Connection) -> frozenset[str]:
    """Digests of all versions that are not deleted."""
    return frozenset(connection.scalars(sa.select(v.c.digest).where(_LIVE)))


def insert_version(connection: Connection, adapter: int, blob: Blob, meta: AdapterMeta, now: float) -> int:
    """Add the next version of an adapter and return its number. Deleted numbers count."""
    last = connection.scalar(sa.select(sa.func.max(v.c.version)).where(v.c.adapter_id == adapter))
    number = (last or 0) + 1
    connection.execute(
        v.insert().values(
            adapter_id=adapter,
            version=number,
            digest=blob.digest,
            state=VersionState.READY.value,
            pinned=False,
            size_bytes=blob.size_bytes,
            meta=msgspec.to_builtins(meta),
            reason="",
            created=now,
        )
    )
    return number


def update_version(connection: Connection, adapter: int, number: int, **values: Any) -> None:
    """Change columns of one version."""
    connection.execute(v.update().where(v.c.adapter_id == adapter, v.c.version == number).values(**values))


def quarantine(connection: Connection, digest: str, reason: str) -> list[str]:
    """Keep every usable version with this content from answering; gives them as ``name@version``."""
    which = sa.and_(v.c.digest == digest, v.c.state == VersionState.READY.value)
    query = sa.select(a.c.name, v.c.version).join(a, a.c.id == v.c.adapter_id).where(which).order_by(v.c.id)
    refs = [f"{name}@{number}" for name, number in connection.execute(query).all()]
    if refs:
        values = {"state": VersionState.QUARANTINED.value, "reason": reason}
        connection.execute(v.update().where(which).values(**values))
    return refs


def damage_of(connection: Connection, digest: str) -> str | None:
    """Why a version with this content is quarantined as damaged, if one is."""
    damaged = sa.func.substr(v.c.reason, 1, len(DAMAGED)) == DAMAGED
    state = v.c.state == VersionState.QUARANTINED.value
    return connection.scalar(sa.select(v.c.reason).where(v.c.digest == digest, state, damaged).limit(1))


def heal(connection: Connection, digest: str) -> None:
    """Make usable again what was quarantined because its files were damaged: they are whole now."""
    damaged = sa.func.substr(v.c.reason, 1, len(DAMAGED)) == DAMAGED
    which = sa.and_(v.c.digest == digest, v.c.state == VersionState.QUARANTINED.value, damaged)
    connection.execute(v.update().where(which).values(state=VersionState.READY.value, reason=""))


def put_alias(connection: Connection, adapter: int, alias: str, number: int) -> None:
    """Point an alias of an adapter at a version, and remember what it meant."""
    before = aliased(connection, adapter, alias)
    if before is None:
        connection.execute(al.insert().values(adapter_id=adapter, alias=alias, version=number))
    elif before != number:
        moved = al.update().where(al.c.adapter_id == adapter, al.c.alias == alias)
        connection.execute(moved.values(version=number, previous=before))


def drop_alias(connection: Connection, adapter: int, alias: str) -> bool:
    """Remove an alias; whether there was one."""
    return bool(connection.execute(al.delete().where(al.c.adapter_id == adapter, al.c.alias == alias)).rowcount)


def delete_versions(connection: Connection, adapter: int, numbers: Sequence[int], now: float) -> None:
    """Mark versions deleted and drop the aliases that meant them."""
    connection.execute(
        v.update()
        .where(v.c.adapter_id == adapter, v.c.version.in_(numbers))
        .values(state=VersionState.DELETED.value, pinned=False, deleted=now)
    )
    connection.execute(al.delete().where(al.c.adapter_id == adapter, al.c.version.in_(numbers)))


def version_record(row: Row[Any]) -> VersionRecord:
    """A row of the queries above as a record."""
    return read_row(row, VersionRecord)
