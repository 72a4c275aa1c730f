"""What callers are told of their quotas with every answer."""

from __future__ import annotations

import pytest

from loramux_server.core.callers.principal import LOCAL
from loramux_server.core.callers.quota import Quota, Quotas
from loramux_server.http.exchanges.rates import rate_headers
from loramux_server.services.access.quotas import Rate

from .conftest import Http

CHAT = {"model": "base", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
PREFIX = "x-ratelimit-"


def limited(http: Http, **limits: int) -> None:
    http.context.meter.quotas = Quotas({f"tenant:{LOCAL.tenant}": Quota(**limits)})


async def test_answers_and_refusals_tell_what_is_left(http: Http) -> None:
    http.answers("Hello.")
    assert not [name for name in (await http.raw.get("/v1/models")).headers if name.startswith(PREFIX)]
    limited(http, requests_per_minute=3)
    for left in (2, 1, 0):
        answer = await http.raw.get("/v1/models")
        assert answer.headers[f"{PREFIX}limit-requests"] == "3"
        assert answer.headers[f"{PREFIX}remaining-requests"] == str(left)
        assert f"{PREFIX}limit-tokens" not in answer.headers
    assert answer.headers[f"{PREFIX}reset-requests"] == "1m0s" or answer.headers[f"{PREFIX}reset-requests"].startswith(
        "59"
    )
    refused = await http.raw.get("/v1/models")
    assert refused.status_code == 429
    assert refused.headers[f"{PREFIX}remaining-requests"] == "0"
    assert int(refused.headers["retry-after"]) <= 20


@pytest.mark.parametrize("stream", [False, True])
async def test_tokens_of_the_request_itself_are_counted(http: Http, stream: bool) -> None:
    http.answers("Hello.")
    limited(http, tokens_per_minute=1000)
    answer = await http.raw.post("/v1/chat/completions", json={**CHAT, "stream": stream})
    left = int(answer.headers[f"{PREFIX}remaining-tokens"])
    assert 900 < left < 1000
    limited(http, tokens_per_minute=3)
    refused = await http.raw.post("/v1/chat/completions", json=CHAT)
    assert (refused.status_code, refused.headers[f"{PREFIX}limit-tokens"]) == (429, "3")
    assert "retry-after" not in refused.headers  # no time makes it smaller than the quota


async def test_strangers_are_told_nothing(http: Http) -> None:
    from .test_door import Keys

    limited(http, requests_per_minute=3)
    http.access.authenticator = Keys()
    answer = await http.raw.get("/v1/models")
    assert answer.status_code == 401
    assert not [name for name in answer.headers if name.startswith(PREFIX)]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0ms"), (0.0881, "89ms"), (1, "1s"), (8.64, "8.64s"), (59.999, "1m0s"), (90, "1m30s")]
)
def test_times_are_written_as_openai_writes_them(seconds: float, text: str) -> None:
    headers = rate_headers([Rate("tokens_per_minute", 10, 5, seconds)])
    assert headers[f"{PREFIX}reset-tokens"] == text
