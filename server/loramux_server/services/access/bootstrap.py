"""The first key of a server that nobody has a shell on: from a file that it is started with."""

from __future__ import annotations

from ...core.callers.keys import ApiKey
from ...core.callers.principal import DEFAULT_TENANT, Scope
from ...store.keys import KeyRecord, KeyTable
from ...telemetry.logs import get_logger

logger = get_logger(__name__)

CREATOR = "bootstrap file"


def ensure(key: ApiKey, table: KeyTable) -> KeyRecord | None:
    """Let a key do everything for the default tenant; what was created, None where the key is known. Blocking.

    A key that was revoked stays revoked. Keys of earlier files stay as they are. Raises ALREADY_EXISTS when another
    key has its id.
    """
    known = table.get(key.id)
    record = table.create(key, DEFAULT_TENANT, Scope, name="bootstrap", creator=CREATOR)
    if record.revoked is not None:
        logger.warning("the bootstrap key was revoked and stays so", key_id=record.id)
    if known is not None:
        return None
    logger.info("bootstrap key created; keys of earlier files stay until they are revoked", key_id=record.id)
    return record
