"""The public keys of an OpenID provider: fetched off the loop, kept for a while, fetched again for a key not known."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from typing import Any
from urllib.parse import urlsplit

from joserfc.errors import JoseError
from joserfc.jwk import JWKRegistry, Key, KeySet, RSAKey

from ...core.observing.outage import Outage
from ...host.urls import is_loopback, why_not_trusted
from ...telemetry.logs import get_logger
from .refusals import unavailable

logger = get_logger(__name__)

FETCH_SECONDS = 5.0
"""What one fetch may take, both documents together."""
FRESH_SECONDS = 300.0
"""After this time the keys are fetched again, while those that are known go on."""
RETRY_SECONDS = 10.0
"""Between two fetches, however many tokens name keys that are not known."""
KNOWN_SECONDS = 3600.0
"""How long keys that are known are trusted while the provider is away."""
MOST_BYTES = 1 << 20
MOST_KEYS = 100
LEAST_RSA_BITS = 2048
CURVES = {"EC": "P-256", "OKP": "Ed25519"}


class ProviderError(Exception):
    """The provider cannot be reached, or answers with something else than it should. Its text is for the log."""


class ProviderKeys:
    """The keys of the provider ``issuer``. One instance serves all doors."""

    def __init__(self, issuer: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._issuer, self._clock = issuer, clock
        self._keys: KeySet | None = None
        self._fetched = self._tried = float("-inf")
        self._fetching: asyncio.Task[None] | None = None
        self._outage = Outage(clock)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="oidc")

    async def stop(self) -> None:
        """Fetch no more. Harmless twice."""
        if self._fetching is not None:
            self._fetching.cancel()
            await asyncio.wait((self._fetching,))
        self._thread.shutdown(wait=False)

    async def with_key(self, kid: str | None) -> KeySet:
        """The keys, fetched again first if none is called ``kid``. Raises UNAVAILABLE where they are not known."""
        if not self._usable or not self._has(kid):
            await self._fetch()
            if not self._usable or (self._outage.failures and not self._has(kid)):
                raise unavailable()
        elif self._clock() - self._fetched > FRESH_SECONDS:
            self._begin_fetch()
        assert self._keys is not None
        return self._keys

    @property
    def _usable(self) -> bool:
        return self._keys is not None and self._clock() - self._fetched <= KNOWN_SECONDS

    def _has(self, kid: str | None) -> bool:
        return kid is None or any(key.kid == kid for key in self._keys or ())

    async def _fetch(self) -> None:
        if (fetching := self._begin_fetch()) is not None:
            await asyncio.wait((fetching,))  # a caller who leaves does not end what others wait for

    def _begin_fetch(self) -> asyncio.Task[None] | None:
        """The fetch that is under way, or a new one; None where the last one is too recent."""
        if self._fetching is None or self._fetching.done():
            if self._clock() - self._tried < RETRY_SECONDS:
                return None
            self._tried = self._clock()
            self._fetching = asyncio.create_task(self._try_fetch(), name="oidc")
        return self._fetching

    async def _try_fetch(self) -> None:
        began = self._clock()
        try:
            async with asyncio.timeout(FETCH_SECONDS):
                read = asyncio.get_running_loop().run_in_executor(self._thread, read_keys, self._issuer)
                self._keys = await read
        except Exception as error:
            if self._outage.failed():
                why = f"no answer within {FETCH_SECONDS:g} s" if isinstance(error, TimeoutError) else str(error)
                logger.warning("the keys of the OpenID provider cannot be fetched", issuer=self._issuer, error=why)
        else:
            self._fetched = began
            if (seconds := self._outage.over()) is not None:
                logger.warning("the OpenID provider answers again", after_seconds=round(seconds, 1))


def read_keys(issuer: str) -> KeySet:
    """The keys that a provider signs with; blocking. Raises ProviderError."""
    until = time.monotonic() + FETCH_SECONDS
    described = _get(f"{issuer.rstrip('/')}/.well-known/openid-configuration", until)
    if described.get("issuer") != issuer:
        raise ProviderError(f"it calls itself {described.get('issuer')!r}; --oidc-issuer must be exactly that")
    where = described.get("jwks_uri")
    if not isinstance(where, str) or (why := why_not_trusted(where)):
        raise ProviderError(f"its jwks_uri {where!r} {why if isinstance(where, str) else 'is no text'}")
    found = _get(where, until).get("keys")
    keys = [key for each in (found if isinstance(found, list) else [])[:MOST_KEYS] if (key := _signing_key(each))]
    if not keys:
        raise ProviderError(f"{where} has no key for RS256, ES256 or EdDSA")
    return KeySet(keys)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any) -> None:
        """Keys come from where the operator said, and from nowhere else."""


def _get(url: str, until: float) -> dict[str, Any]:
    """The JSON object at a URL."""
    # A proxy of the environment is for other machines, never for this one.
    proxy = urllib.request.ProxyHandler({} if is_loopback(urlsplit(url).hostname or "") else None)
    opener = urllib.request.build_opener(proxy, _NoRedirect)
    request = urllib.request.Request(url, headers={"Accept": "application/json", "User-Agent": "loramux"})
    pieces: list[bytes] = []
    try:
        with opener.open(request, timeout=max(until - time.monotonic(), 0.1)) as answer:
            while piece := answer.read1(1 << 16):
                pieces.append(piece)
                if sum(map(len, pieces)) > MOST_BYTES:
                    raise ProviderError(f"{url} is larger than {MOST_BYTES} bytes")
                if time.monotonic() > until:
                    raise ProviderError(f"{url} is sent too slowly")
        found = json.loads(b"".join(pieces))
    except urllib.error.HTTPError as error:
        raise ProviderError(f"{url} answers {error.code}") from None
    except (OSError, HTTPException) as error:
        raise ProviderError(f"{url} cannot be read: {getattr(error, 'reason', error)}") from None
    except (ValueError, RecursionError):
        raise ProviderError(f"{url} is not JSON") from None
    if not isinstance(found, dict):
        raise ProviderError(f"{url} is not a JSON object")
    return found


def _signing_key(jwk: object) -> Key | None:
    """A key that tokens may be signed with; None for others, which the set may hold too."""
    if not isinstance(jwk, dict) or jwk.get("use", "sig") != "sig":
        return None
    kind = jwk.get("kty")
    if kind != "RSA" and (kind not in CURVES or jwk.get("crv") != CURVES[kind]):
        return None
    try:
        key = JWKRegistry.import_key(jwk)
        key.ensure_kid()
        if isinstance(key, RSAKey) and key.public_key.key_size < LEAST_RSA_BITS:
            return None
    except (JoseError, ValueError, TypeError, KeyError):
        return None
    return key
