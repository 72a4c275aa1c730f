"""What a caller shows a door to say who it is."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Credentials:
    """All that a door knows about a caller before the request is read. Nothing of it is trusted yet."""

    authorization: tuple[str, ...] = field(default=(), repr=False)
    """Values of the ``authorization`` metadata or header, as many as were sent; no log may show them."""
    certificate_names: tuple[str, ...] = ()
    """Names in the client's certificate, which TLS has verified: ``DNS:NAME`` or ``URI:NAME``."""
    peer: str = ""
    """Address of the client."""
