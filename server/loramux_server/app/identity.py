"""Who may call this server, as its settings and its database have it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from ..config import Settings
from ..core.callers.san import SanPattern
from ..core.errors import Error, invalid_field
from ..services.access import bootstrap
from ..services.access.authenticator import Authenticator
from ..services.access.bearer import BearerAuthenticator
from ..services.access.certificates import Certificates
from ..services.access.exposure import check_listen, may_be_open
from ..services.access.key_file import read_key
from ..services.access.keys import KeyRing
from ..store.keys import KeyTable
from ..telemetry.audit.entry import Entry
from ..telemetry.audit.log import AuditLog

if TYPE_CHECKING:
    from ..services.access.oidc import OpenIdProvider


@dataclass(frozen=True, slots=True)
class Identity:
    """What callers are known by."""

    authenticator: Authenticator
    summary: str
    """Who may call, for the operator."""
    keys: KeyRing
    provider: OpenIdProvider | None

    @classmethod
    async def open(cls, settings: Settings, table: KeyTable, audit: AuditLog | None) -> Self:
        """Create the bootstrap key, read the keys and follow them. Raises ``Error`` for what must be mended first."""
        if settings.bootstrap_key is not None:
            key = await asyncio.to_thread(read_key, settings.bootstrap_key)
            made = await asyncio.to_thread(bootstrap.ensure, key, table)
            if made is not None and audit is not None:
                entry = Entry("keys create", made.id, tenant=made.tenant, peer=bootstrap.CREATOR)
                await asyncio.to_thread(audit.write, entry)
        provider, keys = provider_of(settings), KeyRing(table)
        await keys.start()
        try:
            bearer = BearerAuthenticator(keys, provider, may_be_open=may_be_open(settings))
            pattern = settings.tls.tenant_from_san
            check_listen(settings, callers_known=bearer.knows_callers or pattern is not None)
        except Error:
            await keys.stop()
            raise
        authenticator = Certificates(SanPattern.parse(pattern), bearer) if pattern else bearer
        return cls(authenticator, _summary(settings, bearer), keys, provider)

    @property
    def anyone(self) -> bool:
        """Whether whoever reaches the server may call, just now."""
        return isinstance(self.authenticator, BearerAuthenticator) and self.authenticator.open

    async def close(self) -> None:
        """Follow nothing more. Harmless twice."""
        await self.keys.stop()
        if self.provider is not None:
            await self.provider.stop()


def _summary(settings: Settings, bearer: BearerAuthenticator) -> str:
    if bearer.open:
        return "Open: there are no API keys, so whoever reaches this server may do everything."
    ways = ["an API key"]
    if settings.oidc.issuer:
        ways.append(f"a token of {settings.oidc.issuer}")
    if settings.tls.tenant_from_san:
        ways.append("a certificate of a tenant")
    return f"Closed: callers need {' or '.join(ways)}."


def provider_of(settings: Settings) -> OpenIdProvider | None:
    """The OpenID provider that the settings name; nothing is asked of it yet."""
    oidc = settings.oidc
    if oidc.issuer is None or oidc.audience is None:
        return None
    try:
        from ..services.access.oidc import OpenIdProvider
    except ModuleNotFoundError as error:
        raise invalid_field(
            "--oidc-issuer", f"needs the package {error.name}; install it with: pip install joserfc"
        ) from None
    return OpenIdProvider(oidc.issuer, oidc.audience, tenant_claim=oidc.tenant_claim, scope_claim=oidc.scope_claim)
