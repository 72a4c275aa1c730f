"""Names of adapters and references to their versions: checked before anything is looked up."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ...core.errors import invalid_field
from ...core.types import BASE_NAME

LATEST = "latest"
"""The alias that a bare name means."""

RESERVED = frozenset({BASE_NAME})
"""What means the bare base in metrics and to clients. Names that are published already stay readable."""

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}", re.ASCII)
_VERSION = re.compile(r"[1-9][0-9]{0,8}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Ref:
    """``name``, ``name@3`` or ``name@alias``; exactly one of ``version`` and ``alias`` is set."""

    name: str
    version: int | None = None
    alias: str | None = None

    @property
    def bare(self) -> bool:
        """Whether it was a name alone."""
        return self.alias == LATEST


def check_name(name: str, field: str = "name") -> str:
    """``name`` if it may name an adapter, else INVALID_ARGUMENT."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise invalid_field(
            field,
            f"{_cut(name)} is not a valid name: use 1 to 64 of a-z, 0-9, '.', '_' and '-', beginning with a letter "
            "or digit",
        )
    return name


def check_new_name(name: str, field: str = "name") -> str:
    """``name`` if something may be published under it: a name that is no word of the server's own."""
    if check_name(name, field) in RESERVED:
        raise invalid_field(field, f"{name!r} means the base model itself; choose another name")
    return name


def check_alias(alias: str, field: str = "alias") -> str:
    """``alias`` if it may name a version: as a name, but not all digits."""
    check_name(alias, field)
    if alias.isdecimal():
        raise invalid_field(field, f"{alias!r} is a number; numbers mean versions")
    return alias


def parse_ref(ref: str, field: str = "adapter") -> Ref:
    """Parse a reference; INVALID_ARGUMENT naming ``field`` if it is none."""
    if not isinstance(ref, str):
        raise invalid_field(field, "must be text such as 'name' or 'name@3'")
    name, at, which = ref.partition("@")
    check_name(name, field)
    if not at:
        return Ref(name, alias=LATEST)
    if _VERSION.fullmatch(which):
        return Ref(name, version=int(which))
    if not which or which.isdecimal():
        raise invalid_field(field, f"{_cut(ref)} has no valid version after '@': write name@3 or name@alias")
    return Ref(name, alias=check_alias(which, field))


def _cut(text: object) -> str:
    shown = repr(text)
    return shown if len(shown) <= 80 else shown[:77] + "..."
