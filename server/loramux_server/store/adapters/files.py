"""The files of adapter versions: looked for, read, and looked at again where something was wrong with them."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from ...core.errors import Code, Error, is_damage
from ...core.types import COMPUTED_WITH, AdapterVersion
from ..blobs.blobs import BlobStore
from ..damage import DamageCount, Kind
from ..database import Database
from ..records import DAMAGED, VersionRecord
from . import rows

log = logging.getLogger(__name__)


class AdapterFiles:
    """The files of all versions. Thread-safe.

    Damage leads to quarantine: no version with that content answers until the same files are stored again.
    """

    def __init__(self, database: Database, blobs: BlobStore, damage: DamageCount) -> None:
        self._db, self._blobs, self._damage = database, blobs, damage

    def located(self, record: VersionRecord) -> AdapterVersion:
        """A version whose files are on this machine. DATA_LOSS when they are gone; it is quarantined then."""
        try:
            self._blobs.local_path(record.digest)
            self._blobs.entries(record.digest)
        except Error as error:
            if not is_damage(error):
                raise
            self.mark_damaged(record.digest, error.message)
            raise lost(record.ref, f"{DAMAGED}{error.message}") from error
        return AdapterVersion(record.name, record.version, record.digest, record.meta.rank)

    def read(self, version: AdapterVersion) -> dict[str, bytearray]:
        """The files that a version is computed with. DATA_LOSS if they are damaged; it is quarantined then."""
        try:
            return self._blobs.reader.read(version.digest)
        except Error as error:
            if not is_damage(error):
                raise
        self.check_damage([version])
        return self._blobs.reader.read(version.digest)

    def mark_damaged(self, digest: str, damage: str) -> None:
        """Quarantine every version with this content, whose files have this ``damage``."""
        if self.quarantine(digest, f"{DAMAGED}{damage}"):
            self._damage.found(Kind.ADAPTER)

    def quarantine(self, digest: str, reason: str) -> list[str]:
        """Keep every usable version with this content from answering; gives them as ``name@version``."""
        with self._db.write("quarantine") as connection:
            refs = rows.quarantine(connection, digest, reason)
        if refs:
            log.error("quarantined %s: %s", ", ".join(refs), reason)
        return refs

    def check_damage(self, versions: Iterable[AdapterVersion]) -> None:
        """Look at the files of versions one of which was found damaged by a reader.

        Returns if all are whole (by now: a local copy was made anew). What is not is quarantined, and reported by
        DATA_LOSS. Reads whole files: call it off the event loop.
        """
        for version in versions:
            with self._db.read() as connection:
                marked = rows.damage_of(connection, version.digest)
            if marked is None and (found := self._blobs.recheck(version.digest, COMPUTED_WITH)):
                marked = f"{DAMAGED}{'; '.join(map(str, found))}"
                self.mark_damaged(version.digest, marked.removeprefix(DAMAGED))
            if marked is not None:
                raise lost(version.ref, marked)


def lost(ref: str, reason: str) -> Error:
    """The error for a version that is quarantined because its files are damaged or gone."""
    return Error(
        Code.DATA_LOSS,
        f"adapter {ref} is quarantined, {reason}. Use or promote another version of {ref.partition('@')[0]!r}, or "
        "upload the same folder again, which heals it",
        reason="ADAPTER_NOT_READY",
    )
