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
    """Owner of the adapters, datasets and jobs that the call may see. Never empty."""
    scopes: frozenset[Scope]
    key_id: str = ""
    """The key that was presented; empty: none."""
    adapters: frozenset[str] | None = None
    """Names of the adapters that the key may use; None: all that the tenant may."""

    def __post_init__(self) -> None:
        if not self.tenant:  # what belongs to nobody is shared by all
            raise ValueError("a caller needs a tenant")

    def may_use(self, adapter: str) -> bool:
        """Whether the key may use the adapter of this name."""
        return self.adapters is None or adapter in self.adapters


Viewer = Principal | str
"""For whom something is looked up: a caller, held to its key's list, or a tenant for which the server itself works."""


def tenant_of(viewer: Viewer) -> str:
    """The tenant whose objects are looked up."""
    return viewer if isinstance(viewer, str) else viewer.tenant


def names_of(viewer: Viewer) -> frozenset[str] | None:
    """Names of the adapters that may be found; None: any."""
    return None if isinstance(viewer, str) else viewer.adapters


def may_find(viewer: Viewer, adapter: str) -> bool:
    """Whether the adapter of this name may be found, if there is one."""
    return isinstance(viewer, str) or viewer.may_use(adapter)


LOCAL = Principal(DEFAULT_TENANT, frozenset(Scope))
"""Whoever reaches a server that asks for no key: the default tenant, everything allowed."""
