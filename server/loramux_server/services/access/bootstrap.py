"""The first key of a server that nobody has a shell on: from a file that it is started with."""

from __future__ import annotations

from pathlib import Path

from ...core.errors import invalid_field
from ...core.keys import FORM, ApiKey
from ...core.principal import DEFAULT_TENANT, Scope
from ...store.keys import KeyRecord, KeyTable
from ...telemetry.logs import get_logger

logger = get_logger(__name__)

FLAG = "--bootstrap-key"
CREATOR = "bootstrap file"
MOST_BYTES = 4096


def read_key(path: Path) -> ApiKey:
    """The key that a file holds as text, with white space around it or not.

    Raises INVALID_ARGUMENT; the message never holds what is in the file.
    """
    try:
        with path.open("rb") as file:
            text = file.read(MOST_BYTES + 1).decode("ascii")
    except OSError as error:
        raise invalid_field(FLAG, f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        text = ""
    key = ApiKey.parse(text.strip())
    if key is None:
        raise invalid_field(FLAG, f"{path} does not hold a key ({FORM}); make one with: loramux keys generate")
    if key.guessable:
        raise invalid_field(FLAG, f"the secret in {path} can be guessed; make one with: loramux keys generate")
    return key


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
