"""The adapter registry: names, immutable versions, and the aliases that move between them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from sqlalchemy import Connection, Row
from sqlalchemy.exc import IntegrityError

from ...core.callers.principal import Viewer, may_find, tenant_of
from ...core.errors import Code, Error, adapter_not_found, invalid_field
from ...core.types import AdapterVersion
from ..blobs.blobs import Blob, BlobStore
from ..damage import DamageCount
from ..database import Database
from ..paging import check_page_size, make_token, read_token
from ..quotas import check_adapter
from ..records import SHARED, AdapterMeta, AdapterRecord, VersionRecord, VersionState
from . import rows
from .files import AdapterFiles, lost
from .refs import LATEST, Ref, check_alias, check_name, check_new_name, parse_ref
from .usage import UsageLog

log = logging.getLogger(__name__)

Also = Callable[[Connection, VersionRecord], None]
_NO_DONORS: Mapping[str, str] = MappingProxyType({})


class AdapterRegistry:
    """Adapters of all tenants, on disk. Thread-safe.

    A reference is ``name``, ``name@version`` or ``name@alias``. A viewer sees its tenant's adapters and the shared ones
    (owner ``SHARED``), its own first, and changes only its own; a key with a list of adapters finds no others. Errors:
    INVALID_ARGUMENT for what is no reference, NOT_FOUND for what the viewer cannot see.
    """

    def __init__(
        self,
        database: Database,
        blobs: BlobStore,
        now: Callable[[], float] = time.time,
        damage: DamageCount | None = None,
    ) -> None:
        self._db, self._blobs, self._now = database, blobs, now
        self._usage = UsageLog(database, now)
        self.files = AdapterFiles(database, blobs, damage or DamageCount())

    def publish(
        self,
        name: str,
        owner: str,
        folder: Path,
        meta: AdapterMeta,
        *,
        promote: bool = True,
        also: Also | None = None,
    ) -> VersionRecord:
        """Store a folder as the next version of ``name``; with ``promote``, the bare name means it from now on.

        The files are durable before the row is, and the row, the alias and what ``also`` writes are one
        transaction. Content that is a version of the name already is not published twice: that version is
        returned (and promoted). ``folder`` stays the caller's. Raises RESOURCE_EXHAUSTED over the owner's quota.
        """
        check_new_name(name)
        with self._blobs.publishing():
            blob = self._blobs.put_folder(folder)
            with self._numbering(name), self._db.write("publish") as connection:
                rows.heal(connection, blob.digest)  # the files have just been stored again
                record = self._insert(connection, name, owner, blob, meta, promote)
                if also is not None:
                    also(connection, record)
        return record

    def share(self, ref: str, viewer: Viewer) -> AdapterRecord:
        """Publish a version of the viewer's tenant to all tenants; the shared adapter of its name means it from now on.

        The shared version is one of its own, with the same content: it stays when the tenant's is deleted, and names
        nothing else of the tenant's. Gives the shared adapter. Raises FAILED_PRECONDITION unless the version is READY.
        """
        parsed = parse_ref(ref)
        with self._blobs.publishing(), self._numbering(parsed.name), self._db.write("share") as connection:
            self._own(connection, ref, parsed.name, viewer)
            record = self._find(connection, ref, parsed, viewer)
            if record.state is not VersionState.READY:
                raise _not_ready(record.ref, record.state, record.reason)
            blob = Blob(record.digest, record.size_bytes)
            self._insert(connection, record.name, SHARED, blob, record.meta.without_references(), True)
            return self._whole(connection, [self._adapter(connection, ref, record.name, SHARED)])[0]

    def unshare(self, name: str, viewer: Viewer) -> tuple[VersionRecord, ...]:
        """Delete the shared adapter of a name; returns its versions. What tenants have of that name stays."""
        check_name(name)
        with self._db.write("unshare") as connection:
            shared = rows.visible_adapter(connection, name, SHARED) if may_find(viewer, name) else None
            if shared is None:
                raise Error(Code.NOT_FOUND, f"no adapter {name!r} is shared", reason="ADAPTER_NOT_FOUND")
            gone = self._whole(connection, [shared])[0].versions
            rows.delete_versions(connection, shared.id, [version.version for version in gone], self._now())
        return gone

    def resolve(self, ref: str, viewer: Viewer, donors: Mapping[str, str] = _NO_DONORS) -> AdapterVersion:
        """The version that a reference means now."""
        return self.resolve_all([ref], viewer, donors)[0]

    def resolve_all(
        self, refs: Sequence[str], viewer: Viewer, donors: Mapping[str, str] = _NO_DONORS
    ) -> tuple[AdapterVersion, ...]:
        """``resolve`` for several references, all as of one moment.

        ``donors`` (reference -> digest) are those of a job, found even if they are deleted by now. Raises
        FAILED_PRECONDITION for a quarantined version or a name without a promoted one, DATA_LOSS when the files are
        damaged or gone.
        """
        parsed = [(ref, parse_ref(ref)) for ref in refs]
        with self._db.read() as connection:
            found = [self._donor(connection, ref, one, viewer, donors) for ref, one in parsed]
        for record in found:
            if record.damaged:
                raise lost(record.ref, record.reason)
            if record.state is VersionState.QUARANTINED:
                raise _not_ready(record.ref, record.state, record.reason)
        return tuple(self.files.located(record) for record in found)

    def get_version(self, ref: str, viewer: Viewer) -> VersionRecord:
        """The record that a reference means, whatever its state."""
        parsed = parse_ref(ref)
        with self._db.read() as connection:
            return self._usage.seen(self._find(connection, ref, parsed, viewer))

    def get(self, ref: str, viewer: Viewer) -> AdapterRecord:
        """An adapter with all its versions and aliases; the reference's version must exist."""
        parsed = parse_ref(ref)
        with self._db.read() as connection:
            adapter = self._adapter(connection, ref, parsed.name, viewer)
            record = self._whole(connection, [adapter])[0]
        if parsed.version is not None and record.version(parsed.version) is None:
            raise adapter_not_found(ref)
        if parsed.alias is not None and not parsed.bare and parsed.alias not in record.aliases:
            raise adapter_not_found(ref)
        return record

    def list(
        self, viewer: Viewer, *, prefix: str = "", page_size: int = 100, page_token: str = ""
    ) -> tuple[tuple[AdapterRecord, ...], str]:
        """A page of the adapters that a viewer sees, by name, and the token of the next page (empty: none).

        Only those whose names begin with ``prefix``.
        """
        check_page_size(page_size)
        after = read_token(page_token)
        with self._db.read() as connection:
            found = rows.page(connection, viewer, after, page_size + 1, prefix)
            records = self._whole(connection, found[:page_size])
        return records, make_token(records[-1].name) if len(found) > page_size else ""

    def count(self, viewer: Viewer) -> int:
        """How many adapters a viewer sees."""
        with self._db.read() as connection:
            return rows.count(connection, viewer)

    def owners(self, name: str) -> frozenset[str]:
        """The tenants that have an adapter of this name; ``SHARED`` among them when all may use one."""
        with self._db.read() as connection:
            return rows.owners(connection, name)

    def set_alias(self, name: str, version: int, viewer: Viewer, alias: str = LATEST) -> VersionRecord:
        """Make ``name@alias`` (by default the bare name) mean ``version``: promote or roll back.

        FAILED_PRECONDITION unless the version is READY.
        """
        check_name(name)
        check_alias(alias)
        ref = f"{name}@{version}"
        with self._db.write("alias") as connection:
            adapter = self._own(connection, ref, name, viewer)
            row = rows.version(connection, adapter.id, version)
            if row is None:
                raise adapter_not_found(ref)
            if row.state != VersionState.READY:
                raise _not_ready(ref, row.state, row.reason)
            rows.put_alias(connection, adapter.id, alias, version)
            return self._find(connection, ref, Ref(name, version=version), viewer)

    def remove_alias(self, name: str, viewer: Viewer, alias: str) -> None:
        """Forget ``name@alias``; the version stays. NOT_FOUND if there is none, INVALID_ARGUMENT for ``latest``."""
        check_name(name)
        check_alias(alias)
        if alias == LATEST:
            raise invalid_field("alias", f"{LATEST!r} is what the bare name means; point it at another version")
        with self._db.write("alias") as connection:
            adapter = self._own(connection, f"{name}@{alias}", name, viewer)
            if not rows.drop_alias(connection, adapter.id, alias):
                raise adapter_not_found(f"{name}@{alias}")

    def delete(self, ref: str, viewer: Viewer) -> tuple[VersionRecord, ...]:
        """Delete one version, or with a bare name all of them; returns what was deleted.

        Numbers are never used again. Files stay until they are collected. FAILED_PRECONDITION for the current
        version while others exist: promote one of them first.
        """
        parsed = parse_ref(ref)
        with self._db.write("delete") as connection:
            adapter = self._own(connection, ref, parsed.name, viewer)
            record = self._whole(connection, [adapter])[0]
            gone = record.versions if parsed.bare else (self._find(connection, ref, parsed, viewer),)
            if len(gone) < len(record.versions) and any(v.current for v in gone):
                raise Error(
                    Code.FAILED_PRECONDITION,
                    f"adapter {gone[0].ref} is what {record.name!r} means now; promote another version first, "
                    "or delete the whole adapter by its bare name",
                    reason="ADAPTER_IS_CURRENT",
                )
            rows.delete_versions(connection, adapter.id, [v.version for v in gone], self._now())
        return gone

    def pin(self, ref: str, viewer: Viewer, pinned: bool = True) -> VersionRecord:
        """Mark a version to be kept resident, or (``pinned`` false) no longer."""
        parsed = parse_ref(ref)
        with self._db.write("pin") as connection:
            adapter = self._own(connection, ref, parsed.name, viewer)
            record = self._find(connection, ref, parsed, viewer)
            rows.update_version(connection, adapter.id, record.version, pinned=pinned)
            return self._find(connection, ref, Ref(record.name, version=record.version), viewer)

    def pinned(self) -> tuple[VersionRecord, ...]:
        """Every pinned version of every tenant."""
        with self._db.read() as connection:
            return tuple(rows.version_record(row) for row in rows.pinned(connection))

    def versions_with(self, digests: Collection[str]) -> tuple[VersionRecord, ...]:
        """Every version of every tenant that has one of these contents, oldest first."""
        with self._db.read() as connection:
            return tuple(rows.version_record(row) for row in rows.versions_with(connection, digests))

    def touch(self, digests: Sequence[str], tenant: str) -> None:
        """Note that a tenant used versions now. Cheap: kept in memory and written now and then."""
        self._usage.touch(digests, tenant)

    def flush(self) -> None:
        """Write the uses noted so far."""
        self._usage.flush()

    def referenced_digests(self) -> frozenset[str]:
        """Blobs that some version still needs."""
        with self._db.read() as connection:
            return rows.live_digests(connection)

    @contextmanager
    def _numbering(self, name: str) -> Iterator[None]:
        """Around the insertion of a version. ABORTED when two servers on one database took the same number."""
        try:
            yield
        except IntegrityError as exc:
            raise Error(Code.ABORTED, f"adapter {name!r} was published by someone else just now; try again") from exc

    def _insert(
        self, connection: Connection, name: str, owner: str, blob: Blob, meta: AdapterMeta, promote: bool
    ) -> VersionRecord:
        now = self._now()
        adapter_id = rows.adapter_id(connection, name, owner, now)
        before = rows.aliased(connection, adapter_id, LATEST)
        same = rows.version_with_digest(connection, adapter_id, blob.digest)
        if same is None:
            check_adapter(connection, owner, adapter_id, blob.size_bytes)
            version = rows.insert_version(connection, adapter_id, blob, meta, now)
        else:
            version = same.version
            rows.update_version(connection, adapter_id, version, state=VersionState.READY.value, reason="")
        if promote:
            rows.put_alias(connection, adapter_id, LATEST, version)
        row = rows.version(connection, adapter_id, version)
        assert row is not None  # written above
        return replace(rows.version_record(row), replaced=before)

    def _find(self, connection: Connection, ref: str, parsed: Ref, viewer: Viewer) -> VersionRecord:
        adapter = self._adapter(connection, ref, parsed.name, viewer)
        number = parsed.version
        if parsed.alias is not None:
            number = rows.aliased(connection, adapter.id, parsed.alias)
            if number is None and parsed.bare:
                raise Error(
                    Code.FAILED_PRECONDITION,
                    f"adapter {parsed.name!r} has no promoted version; promote one, or name one: {parsed.name}@3",
                    reason="ADAPTER_NOT_PROMOTED",
                )
        row = None if number is None else rows.version(connection, adapter.id, number)
        if row is None:
            raise adapter_not_found(ref)
        return rows.version_record(row)

    def _donor(
        self, connection: Connection, ref: str, parsed: Ref, viewer: Viewer, donors: Mapping[str, str]
    ) -> VersionRecord:
        if (digest := donors.get(ref)) is None:
            return self._find(connection, ref, parsed, viewer)
        row = rows.donor(connection, parsed.name, parsed.version, digest, viewer)
        if row is None:
            raise adapter_not_found(ref)
        return rows.version_record(row)

    def _adapter(self, connection: Connection, ref: str, name: str, viewer: Viewer) -> rows.AdapterRow:
        adapter = rows.visible_adapter(connection, name, viewer)
        if adapter is None:
            raise adapter_not_found(ref)
        return adapter

    def _own(self, connection: Connection, ref: str, name: str, viewer: Viewer) -> rows.AdapterRow:
        adapter = self._adapter(connection, ref, name, viewer)
        if adapter.owner != tenant_of(viewer):
            raise Error(
                Code.PERMISSION_DENIED,
                f"adapter {name!r} is shared by all tenants and cannot be changed; an operator can take it back with: "
                f"loramux adapters unshare {name}",
                reason="ADAPTER_IS_SHARED",
            )
        return adapter

    def _whole(self, connection: Connection, adapters: Sequence[rows.AdapterRow]) -> tuple[AdapterRecord, ...]:
        ids = [adapter.id for adapter in adapters]
        versions, aliases = rows.versions(connection, ids), rows.alias_rows(connection, ids)
        return tuple(
            AdapterRecord(
                a.name,
                a.owner,
                a.created,
                tuple(self._usage.seen(rows.version_record(row)) for row in versions[a.id]),
                {row.alias: row.version for row in aliases[a.id]},
                _previous(aliases[a.id], versions[a.id]),
            )
            for a in adapters
        )


def _previous(aliases: Sequence[Row[Any]], versions: Sequence[Row[Any]]) -> int:
    """The version that the bare name meant before, if it is not deleted; 0: none."""
    found = next((row.previous for row in aliases if row.alias == LATEST), None)
    return int(found) if found and any(row.version == found for row in versions) else 0


def _not_ready(ref: str, state: str, reason: str) -> Error:
    return Error(Code.FAILED_PRECONDITION, f"adapter {ref} is {state}: {reason}", reason="ADAPTER_NOT_READY")
