"""Tokens of an OpenID provider: who a signed JSON Web Token says its bearer is, once all of it is checked."""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Callable
from typing import Any

from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jws import JWSRegistry

from ...core.callers.principal import Principal, Scope
from ...core.errors import Error
from ...store.adapters.refs import check_name
from .provider_keys import ProviderKeys
from .refusals import Refused, Verdict

ALGORITHMS = ("RS256", "ES256", "EdDSA", "Ed25519")
"""Signatures by a private key. ``none``, and HMAC with the public key as the secret, are not among them."""
LEEWAY = 30
"""Seconds that the provider's clock and this one's may differ."""
MOST_TOKEN = 16_384
DEFAULT_SCOPES = frozenset({Scope.INFER, Scope.READ_ADAPTERS})
"""What a token may do that says nothing about scopes."""
SUBJECT = "oidc:"
"""How the id of a token's bearer begins, where that of a key would stand; no key's id has a colon."""

_JWT = re.compile(r"([A-Za-z0-9_-]+)\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+", re.ASCII)
_SUBJECT = re.compile(r"[!-~]{1,64}", re.ASCII)


class OpenIdProvider:
    """Knows the bearers of tokens that ``keys`` sign for ``audience``."""

    def __init__(
        self,
        issuer: str,
        audience: str,
        *,
        tenant_claim: str,
        scope_claim: str,
        keys: ProviderKeys | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.issuer = issuer
        self._keys = keys or ProviderKeys(issuer)
        self._tenant_claim, self._scope_claim = tenant_claim, scope_claim
        # Providers put headers of their own into tokens; those marked critical are still refused.
        self._registry = JWSRegistry(algorithms=ALGORITHMS, strict_check_header=False)
        self._claims = jwt.JWTClaimsRegistry(
            now=lambda: int(now()),
            leeway=LEEWAY,
            iss={"essential": True, "value": issuer},
            aud={"essential": True, "value": audience},
            exp={"essential": True},
        )

    async def stop(self) -> None:
        """Ask the provider no more. Harmless twice."""
        await self._keys.stop()

    async def principal(self, token: str) -> Verdict:
        """Who shows a token, or why it opens nothing. Raises UNAVAILABLE while the provider's keys are not known."""
        header = _header(token)
        if header is None:
            return Refused("neither an API key nor a token")
        if header.get("alg") not in ALGORITHMS:
            return Refused("a token with an algorithm that is not taken")
        kid = header.get("kid")
        if not isinstance(kid, str | None):
            return Refused("a token with a kid that is no text")
        keys = await self._keys.with_key(kid)
        try:
            claims = jwt.decode(token, keys, registry=self._registry).claims
            self._claims.validate(claims)
        except (JoseError, ValueError, TypeError, RecursionError) as error:
            return Refused(f"a token that does not hold ({getattr(error, 'error', '') or type(error).__name__})")
        return self._bearer(claims)

    def _bearer(self, claims: dict[str, Any]) -> Verdict:
        subject = claims.get("sub")
        named = SUBJECT + subject if isinstance(subject, str) and _SUBJECT.fullmatch(subject) else ""
        try:
            tenant = check_name(claims.get(self._tenant_claim, ""), self._tenant_claim)
        except Error as error:
            return Refused(f"a token whose claim {error.message}", named)
        return Principal(tenant, _scopes(claims.get(self._scope_claim)), named)


def _header(token: str) -> dict[str, Any] | None:
    """The header of a token, of which nothing is checked yet; None for what is no signed token."""
    if len(token) > MOST_TOKEN or (parts := _JWT.fullmatch(token)) is None:
        return None
    try:
        found = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _scopes(claim: object) -> frozenset[Scope]:
    """The scopes of ours in a claim: words in a text, or a list; the default where there is no claim."""
    if claim is None:
        return DEFAULT_SCOPES
    words = claim.split() if isinstance(claim, str) else claim if isinstance(claim, list) else []
    return frozenset(scope for scope in Scope if scope.value in words)
