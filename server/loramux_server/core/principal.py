"""Who makes a call."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

DEFAULT_TENANT = "default"
SERVER_TENANT = "_server"
"""Names the server itself where it asks the engine for its own sake. No caller's tenant begins with an underscore."""


class Scope(StrEnum):
    """What a principal may do. Names are those that keys carry."""

    INFER = "infer"
    READ_ADAPTERS = "adapters:read"
    WRITE_ADAPTERS = "adapters:write"
    TRAIN = "train"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Principal:
    """The caller, made once for each call by the door and handed down from there: nothing below assumes a tenant."""

    tenant: str
    """Owner of the adapters, datasets and jobs that the call may see."""
    scopes: frozenset[Scope]
    key_id: str = ""
    """The key that was presented; empty: none."""
    adapters: frozenset[str] | None = None
    """Names of the adapters that the key may use; None: all that the tenant may."""


LOCAL = Principal(DEFAULT_TENANT, frozenset(Scope))
"""Whoever reaches a server that asks for no key: the default tenant, everything allowed."""
