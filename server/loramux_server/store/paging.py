"""Page sizes and page tokens. A token says where the last page ended, by a name that its caller knows anyway."""

from __future__ import annotations

import base64
import json
from typing import Any

from ..core.errors import Error, invalid_field

MAX_PAGE = 1000


def check_page_size(page_size: int) -> int:
    """The page size, or INVALID_ARGUMENT unless it is from 1 to 1000."""
    if not 1 <= page_size <= MAX_PAGE:
        raise invalid_field("page_size", f"is {page_size}; it must be from 1 to {MAX_PAGE}")
    return page_size


def make_token(last: str) -> str:
    """The token of the page after ``last``, which must be no number that counts what others have too."""
    return base64.urlsafe_b64encode(json.dumps([last]).encode()).decode()


def read_token(token: str) -> str | None:
    """What ``make_token`` was given, or None for an empty token; INVALID_ARGUMENT for one that we never made."""
    if not token:
        return None
    found: Any
    try:
        found = json.loads(base64.b64decode(token.encode(), altchars=b"-_", validate=True))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, list) or len(found) != 1 or not isinstance(found[0], str):
        raise unknown_token()
    return found[0]


def unknown_token() -> Error:
    """INVALID_ARGUMENT for a token that was never given to its caller."""
    return invalid_field("page_token", "is not one that this server gave; begin again without it")
