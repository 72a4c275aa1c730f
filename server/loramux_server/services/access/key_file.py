"""A file that holds an API key: what a server without a shell is given its first one in."""

from __future__ import annotations

from pathlib import Path

from ...core.callers.keys import FORM, ApiKey
from ...core.errors import invalid_field

FLAG = "--bootstrap-key"
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
