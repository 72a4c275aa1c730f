"""Callers by what they send as ``authorization``: an API key, or a token of an OpenID provider."""

from __future__ import annotations

import re
from typing import Protocol, TypeAlias

from ...core.callers.keys import ApiKey
from ...core.callers.principal import LOCAL, Principal
from . import refusals
from .credentials import Credentials
from .keys import KeyRing
from .refusals import Refused, Verdict

_BEARER = re.compile(r"bearer +(\S+) *", re.ASCII | re.IGNORECASE)

Shown: TypeAlias = ApiKey | str | Refused | None
"""What a caller brings: a key, another bearer token, something that is neither, nothing."""


class TokenVerifier(Protocol):
    """Knows the tokens of a provider."""

    async def principal(self, token: str) -> Verdict:
        """Who shows a token, or why it opens nothing. Raises UNAVAILABLE where that cannot be found out now."""
        ...


class BearerAuthenticator:
    """Knows callers by keys, and by the tokens of ``provider`` if there is one.

    A server without a provider for which no key was ever created is open, where it may be: whoever reaches it is the
    default tenant.
    """

    def __init__(self, keys: KeyRing, provider: TokenVerifier | None = None, *, may_be_open: bool = True) -> None:
        self._keys, self._provider, self._may_be_open = keys, provider, may_be_open
        self._log = refusals.RefusalLog()

    @property
    def knows_callers(self) -> bool:
        """Whether there is anything by which callers could be known: a key, if only a revoked one, or a provider."""
        return self._provider is not None or not self._keys.empty

    @property
    def open(self) -> bool:
        """Whether anybody may call."""
        return self._may_be_open and not self.knows_callers

    async def authenticate(self, credentials: Credentials) -> Principal:
        """Who shows these credentials. Raises UNAUTHENTICATED and UNAVAILABLE."""
        shown = _shown(credentials)
        if self.open:
            if isinstance(shown, ApiKey):
                await self._keys.read_again()  # it may be the first one, and no one else's data is its own
            else:
                self._keys.check_known()
            if self.open:
                return LOCAL
        if shown is None:
            raise refusals.missing()
        verdict = await self._judge(shown)
        if isinstance(verdict, Refused):
            self._log.tell(verdict, credentials.peer)
            raise refusals.invalid()
        return verdict

    async def _judge(self, shown: ApiKey | str | Refused) -> Verdict:
        if isinstance(shown, Refused):
            return shown
        if isinstance(shown, ApiKey):
            return await self._keys.principal(shown)
        if self._provider is not None:
            return await self._provider.principal(shown)
        return Refused("not an API key")


def _shown(credentials: Credentials) -> Shown:
    if not credentials.authorization:
        return None
    if len(credentials.authorization) > 1:
        return Refused("more than one authorization")
    bearer = _BEARER.fullmatch(credentials.authorization[0])
    if bearer is None:
        return Refused("another scheme than Bearer")
    return ApiKey.parse(bearer[1]) or bearer[1]
