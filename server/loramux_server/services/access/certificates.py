"""Callers that are known by the certificate that they connect with."""

from __future__ import annotations

from ...core.callers.principal import Principal, Scope
from ...core.callers.san import SanPattern
from ...core.errors import Code, Error
from . import refusals
from .authenticator import Authenticator
from .credentials import Credentials
from .refusals import Refused

CERTIFICATE_SCOPES = frozenset(Scope) - {Scope.ADMIN}
"""What a certificate allows: all that a tenant does with its own. An operator shows a key."""


class Certificates:
    """Takes the tenant from the client's certificate, and what else there is from the key that is shown beside it.

    ``bearer`` knows keys and tokens, and must never be open.
    """

    def __init__(self, pattern: SanPattern, bearer: Authenticator) -> None:
        self._pattern, self._bearer = pattern, bearer
        self._log = refusals.RefusalLog()

    async def authenticate(self, credentials: Credentials) -> Principal:
        """The tenant of the certificate, or the key's principal where there is one and the two agree.

        A certificate that names no tenant leaves it to the key; one that names several opens nothing.
        """
        tenants = self._pattern.tenants(credentials.certificate_names)
        if credentials.authorization:
            principal = await self._bearer.authenticate(credentials)
            if tenants <= {principal.tenant}:
                return principal
            self._log.tell(Refused("key of another tenant than the certificate", principal.key_id), credentials.peer)
            raise refusals.invalid()
        if len(tenants) == 1:
            return Principal(next(iter(tenants)), CERTIFICATE_SCOPES)
        named = ", ".join(sorted(tenants)) or "none"
        raise Error(
            Code.UNAUTHENTICATED,
            f"the certificate must name one tenant (it names {named}), or {refusals.HOW}",
            reason="CERTIFICATE_WITHOUT_TENANT",
        )
