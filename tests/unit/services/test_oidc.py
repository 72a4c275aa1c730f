"""Tokens of an OpenID provider: a real one on loopback that rotates keys, is slow, is down, and lies."""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from joserfc import jwt
from joserfc.jwk import ECKey, Key, OKPKey, RSAKey

from loramux_server.core.callers.principal import Principal, Scope
from loramux_server.core.errors import Error
from loramux_server.services.access import provider_keys
from loramux_server.services.access.bearer import BearerAuthenticator
from loramux_server.services.access.credentials import Credentials
from loramux_server.services.access.keys import KeyRing
from loramux_server.services.access.oidc import OpenIdProvider
from loramux_server.services.access.provider_keys import KNOWN_SECONDS, RETRY_SECONDS, ProviderKeys
from loramux_server.services.access.refusals import Refused
from loramux_server.store.store import Store

pytestmark = pytest.mark.filterwarnings("ignore::joserfc.errors.SecurityWarning")  # of EdDSA, and of weak keys

RSA = RSAKey.generate_key(2048, {"kid": "rsa-1", "use": "sig"})
EC = ECKey.generate_key("P-256", {"kid": "ec-1"})
ED = OKPKey.generate_key("Ed25519", {"kid": "ed-1"})


class Provider:
    """Answers for the two documents of an OpenID provider; ``answers`` takes the place of one."""

    def __init__(self) -> None:
        self.keys: list[dict[str, Any]] = [key.as_dict(private=False) for key in (RSA, EC, ED)]
        self.answers: dict[str, Callable[[BaseHTTPRequestHandler], None]] = {}
        self.asked: list[str] = []
        provider = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                provider.asked.append(self.path)
                provider.answers.get(self.path, provider._answer)(self)

            def log_message(self, *args: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.issuer = f"http://127.0.0.1:{self.server.server_port}/realm"
        self.released = threading.Event()
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        documents = {
            DISCOVERY: {"issuer": self.issuer, "jwks_uri": f"{self.issuer}/jwks"},
            JWKS: {"keys": self.keys},
        }
        send(request, json.dumps(documents[request.path]).encode())

    def hang(self, request: BaseHTTPRequestHandler) -> None:
        self.released.wait(30)

    def close(self) -> None:
        self.released.set()
        self.server.shutdown()
        self.server.server_close()


BEFORE, AFTER = int(time.time()) - 31, int(time.time()) + 86_400
"""Moments that are past and to come, also when the test's turn comes late."""
DISCOVERY, JWKS = "/realm/.well-known/openid-configuration", "/realm/jwks"


def send(request: BaseHTTPRequestHandler, body: bytes, status: int = 200, **headers: str) -> None:
    request.send_response(status)
    for name, value in headers.items():
        request.send_header(name, value)
    request.end_headers()
    request.wfile.write(body)


class Clock:
    ahead = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.ahead


@pytest.fixture
def provider() -> Iterator[Provider]:
    running = Provider()
    yield running
    running.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def tokens(provider: Provider, clock: Clock) -> AsyncIterator[OpenIdProvider]:
    verifier = OpenIdProvider(
        provider.issuer,
        "loramux",
        tenant_claim="org",
        scope_claim="scope",
        keys=ProviderKeys(provider.issuer, clock=clock),
    )
    yield verifier
    await verifier.stop()


def token(provider: Provider, key: Key = RSA, alg: str = "RS256", *, header: Any = None, **claims: Any) -> str:
    now = int(time.time())
    whole = {
        "iss": provider.issuer,
        "aud": "loramux",
        "sub": "u-7",
        "org": "acme",
        "exp": now + 60,
        "iat": now,
        **claims,
    }
    named = {"alg": alg, "kid": key.kid, **(header or {})}
    present = ({k: v for k, v in each.items() if v is not None} for each in (named, whole))
    return jwt.encode(*present, key, algorithms=[alg])


async def refused(tokens: OpenIdProvider, text: str) -> str:
    verdict = await tokens.principal(text)
    assert isinstance(verdict, Refused), verdict
    return verdict.cause


async def away(tokens: OpenIdProvider, text: str) -> None:
    with pytest.raises(Error) as caught:
        await tokens.principal(text)
    assert caught.value.reason == "IDENTITY_UNAVAILABLE"


@pytest.mark.parametrize(("key", "alg"), [(RSA, "RS256"), (EC, "ES256"), (ED, "EdDSA"), (ED, "Ed25519")])
async def test_a_token_says_who_its_bearer_is(tokens: OpenIdProvider, provider: Provider, key: Key, alg: str) -> None:
    found = await tokens.principal(token(provider, key, alg))
    assert found == Principal("acme", frozenset({Scope.INFER, Scope.READ_ADAPTERS}), "oidc:u-7")
    assert await tokens.principal(token(provider, key, alg, aud=["other", "loramux"])) == found
    assert provider.asked == [DISCOVERY, JWKS]


@pytest.mark.parametrize(
    ("claim", "scopes"),
    [
        ("openid infer train profile", {Scope.INFER, Scope.TRAIN}),
        (["adapters:write", "x", 5], {Scope.WRITE_ADAPTERS}),
        ("openid profile", set()),
        ("", set()),
        ({"infer": True}, set()),
        ("INFER", set()),
    ],
)
async def test_scopes_are_cut_to_those_that_there_are(
    tokens: OpenIdProvider, provider: Provider, claim: Any, scopes: set[Scope]
) -> None:
    found = await tokens.principal(token(provider, scope=claim))
    assert isinstance(found, Principal)
    assert found.scopes == scopes


@pytest.mark.parametrize(
    "claims",
    [
        *({"aud": "other"}, {"aud": ["a", "b"]}, {"aud": None}, {"aud": 5}, {"aud": "loramux2"}),
        *({"iss": "http://127.0.0.1:1/realm"}, {"iss": None}, {"iss": ["x"]}),
        *({"exp": BEFORE}, {"exp": None}, {"exp": "never"}, {"exp": float("nan")}, {"exp": True}),
        *({"nbf": AFTER}, {"iat": AFTER}, {"nbf": "x"}),
        *({"org": None}, {"org": "_server"}, {"org": "A/../b"}, {"org": ["acme"]}, {"org": ""}, {"org": 5}),
        {"sub": 5},
    ],
)
async def test_claims_that_do_not_hold_are_refused(
    tokens: OpenIdProvider, provider: Provider, claims: dict[str, Any]
) -> None:
    await refused(tokens, token(provider, **claims))


async def test_clocks_may_differ_a_little(tokens: OpenIdProvider, provider: Provider) -> None:
    now = int(time.time())
    for claims in ({"exp": now - 10}, {"nbf": now + 10}, {"iat": now + 10}):
        assert isinstance(await tokens.principal(token(provider, **claims)), Principal)


def forged(header: dict[str, Any], claims: bytes, signature: bytes = b"x") -> str:
    parts = (json.dumps(header).encode(), claims, signature)
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)


async def test_algorithms_are_not_the_callers_choice(tokens: OpenIdProvider, provider: Provider) -> None:
    good = token(provider)
    claims = base64.urlsafe_b64decode(good.split(".")[1] + "==")
    for alg in ("none", "None", "HS256", "RS512", "PS256", ["RS256"], {}, None, 5):
        assert "algorithm" in await refused(tokens, forged({"alg": alg, "kid": "rsa-1"}, claims))
    # The public key, which everybody knows, as the secret of HMAC.
    header = {"alg": "HS256", "kid": "rsa-1"}
    signed = forged(header, claims).rpartition(".")[0]
    mac = hmac.digest(RSA.as_pem(private=False), signed.encode(), "sha256")
    assert "algorithm" in await refused(tokens, forged(header, claims, mac))
    # A key of one kind under the name of another.
    await refused(tokens, forged({"alg": "ES256", "kid": "rsa-1"}, claims, b"x" * 64))
    await refused(tokens, forged({"alg": "RS256", "kid": "ec-1"}, claims, b"x" * 256))
    await refused(tokens, forged({"alg": "RS256", "kid": "rsa-1"}, claims, b"\0"))
    # Someone else's key of the right name, a changed payload, a header that must be understood.
    await refused(tokens, token(provider, RSAKey.generate_key(2048, {"kid": "rsa-1"})))
    head, _, signature = good.split(".")
    other = base64.urlsafe_b64encode(claims.replace(b"acme", b"evil")).rstrip(b"=").decode()
    await refused(tokens, f"{head}.{other}.{signature}")
    await refused(tokens, forged({"alg": "RS256", "kid": "rsa-1", "crit": ["x"]}, claims))
    # A key that comes with the token is nobody's.
    own = RSAKey.generate_key(2048, {"kid": "mine"})
    embedded = {"kid": "mine", "jwk": own.as_dict(private=False), "jku": f"{provider.issuer}/mine"}
    await refused(tokens, token(provider, own, header=embedded))
    assert "/realm/mine" not in provider.asked
    assert isinstance(await tokens.principal(good), Principal)


@pytest.mark.parametrize(
    "text",
    [
        *("", "x", "a.b", "a.b.c", "a.b.c.d.e", "...", "e30.e30.e30", "W10.e30.e30", "ey J.a.b", "a.b.c\n"),
        *("é.é.é", forged({"alg": "RS256", "kid": 5}, b"{}"), "A" * 20_000 + ".e30.e30", f"{'W' * 8000}.e30.e30"),
    ],
)
async def test_what_is_no_token_costs_no_look_at_the_provider(
    tokens: OpenIdProvider, provider: Provider, text: str
) -> None:
    await refused(tokens, text)
    assert provider.asked == []


async def test_a_token_without_kid_needs_a_provider_with_one_key(tokens: OpenIdProvider, provider: Provider) -> None:
    await refused(tokens, token(provider, header={"kid": None}))
    provider.keys = provider.keys[:1]
    alone = OpenIdProvider(provider.issuer, "loramux", tenant_claim="org", scope_claim="scope")
    assert isinstance(await alone.principal(token(provider, header={"kid": None})), Principal)
    await refused(alone, token(provider, EC, "ES256", header={"kid": None}))
    await alone.stop()


async def test_keys_are_rotated_and_withdrawn(tokens: OpenIdProvider, provider: Provider, clock: Clock) -> None:
    assert isinstance(await tokens.principal(token(provider)), Principal)
    new = RSAKey.generate_key(2048, {"kid": "rsa-2"})
    provider.keys = [new.as_dict(private=False)]
    clock.ahead = RETRY_SECONDS
    assert isinstance(await tokens.principal(token(provider, new)), Principal)
    await refused(tokens, token(provider))  # rsa-1 is withdrawn
    assert provider.asked.count(JWKS) == 2


async def test_unknown_kids_do_not_hammer_the_provider(tokens: OpenIdProvider, provider: Provider) -> None:
    claims = b"{}"
    forgeries = [forged({"alg": "RS256", "kid": f"k{i}"}, claims) for i in range(200)]
    await asyncio.gather(*(refused(tokens, text) for text in forgeries))
    assert provider.asked == [DISCOVERY, JWKS]


async def test_known_keys_outlive_the_provider_for_a_time(
    tokens: OpenIdProvider, provider: Provider, clock: Clock
) -> None:
    good = token(provider)
    assert isinstance(await tokens.principal(good), Principal)
    provider.answers[JWKS] = lambda request: send(request, b"", 500)
    clock.ahead = KNOWN_SECONDS - 60
    assert isinstance(await tokens.principal(good), Principal)
    unknown = RSAKey.generate_key(2048, {"kid": "rsa-2"})
    await away(tokens, token(provider, unknown))
    clock.ahead = KNOWN_SECONDS + 1
    await away(tokens, good)
    provider.answers.clear()
    clock.ahead += RETRY_SECONDS
    assert isinstance(await tokens.principal(good), Principal)


def _redirect(request: BaseHTTPRequestHandler) -> None:
    send(request, b"", 302, Location="http://127.0.0.1:1/jwks")


@pytest.mark.parametrize("path", [DISCOVERY, JWKS])
@pytest.mark.parametrize(
    "answer",
    [
        lambda request: send(request, b"<html>"),
        lambda request: send(request, b"[]"),
        lambda request: send(request, b"[" * 200_000),
        lambda request: send(request, b" " * (2 << 20)),
        lambda request: send(request, b"\xff\xfe"),
        lambda request: send(
            request, b'{"keys": [{"kty": "oct", "k": "AA"}, 5, {"kty": "RSA", "n": "!"}], "issuer": 5}'
        ),
        lambda request: request.wfile.write(b"not http\r\n\r\n"),
        _redirect,
    ],
    ids=["html", "list", "deep", "large", "bytes", "no key", "no http", "redirect"],
)
async def test_garbage_of_a_provider_is_an_outage(
    tokens: OpenIdProvider, provider: Provider, path: str, answer: Callable[[BaseHTTPRequestHandler], None]
) -> None:
    provider.answers[path] = answer
    await away(tokens, token(provider))


async def test_a_provider_that_hangs_is_given_up(
    tokens: OpenIdProvider, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provider_keys, "FETCH_SECONDS", 0.3)
    provider.answers[JWKS] = provider.hang
    began = time.monotonic()
    await asyncio.gather(*(away(tokens, token(provider)) for _ in range(20)))
    assert time.monotonic() - began < 3


async def test_a_provider_cannot_send_us_elsewhere(tokens: OpenIdProvider, provider: Provider) -> None:
    for where in ("http://192.0.2.1/jwks", "file:///etc/passwd", "https://user:pw@x/", "", 5):
        document = json.dumps({"issuer": provider.issuer, "jwks_uri": where}).encode()
        provider.answers[DISCOVERY] = lambda request, document=document: send(request, document)  # type: ignore[misc]
        with pytest.raises(provider_keys.ProviderError, match="jwks_uri"):
            await asyncio.to_thread(provider_keys.read_keys, provider.issuer)
    other = json.dumps({"issuer": provider.issuer + "/", "jwks_uri": f"{provider.issuer}/jwks"}).encode()
    provider.answers[DISCOVERY] = lambda request: send(request, other)
    with pytest.raises(provider_keys.ProviderError, match="must be exactly that"):
        await asyncio.to_thread(provider_keys.read_keys, provider.issuer)


async def test_weak_and_foreign_keys_are_left_out(provider: Provider) -> None:
    weak = RSAKey.generate_key(1024, {"kid": "weak"})
    encryption = RSAKey.generate_key(2048, {"kid": "enc", "use": "enc"})
    curve = ECKey.generate_key("P-384", {"kid": "p384"})
    provider.keys = [key.as_dict(private=False) for key in (weak, encryption, curve, EC)] + [{"kty": "AKP"}]
    found = await asyncio.to_thread(provider_keys.read_keys, provider.issuer)
    assert [key.kid for key in found.keys] == ["ec-1"]


async def test_tokens_and_keys_open_the_same_server(store: Store, tokens: OpenIdProvider, provider: Provider) -> None:
    ring = KeyRing(store.keys)
    await ring.start()
    callers = BearerAuthenticator(ring, tokens)
    try:
        assert not callers.open  # though there is no key
        assert (await callers.authenticate(Credentials((f"Bearer {token(provider)}",)))).tenant == "acme"
        for shown, reason in (((), "KEY_MISSING"), ((f"Bearer {token(provider, aud='x')}",), "KEY_INVALID")):
            with pytest.raises(Error) as caught:
                await callers.authenticate(Credentials(shown))
            assert caught.value.reason == reason
    finally:
        await ring.stop()
