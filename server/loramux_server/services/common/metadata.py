"""Checks of the free words that callers attach to things."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ...core.errors import FieldViolation
from .checks import shown, utf8_size

MAX_ENTRIES = 64
MAX_ENTRY_BYTES = 4096


def metadata_violations(metadata: Mapping[str, str], field: str = "metadata") -> Iterator[FieldViolation]:
    """At most 64 entries of valid text, each at most 4096 bytes."""
    if len(metadata) > MAX_ENTRIES:
        yield FieldViolation(field, f"has {len(metadata)} entries, at most {MAX_ENTRIES} are allowed")
        return
    for key, value in metadata.items():
        size = utf8_size(key + value)
        if size is None or size > MAX_ENTRY_BYTES:
            yield FieldViolation(f"{field}[{shown(key)}]", f"is not valid text of at most {MAX_ENTRY_BYTES} bytes")
