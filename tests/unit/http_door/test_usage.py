"""Usage as OpenAI's administrators read it, through the package's own client and raw."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from datetime import UTC, date, datetime
from typing import Any

import openai
import pytest
from openai.types.admin.organization import (
    usage_completions_params,
    usage_completions_response,
    usage_embeddings_params,
    usage_embeddings_response,
)

from loramux_server.core.callers.principal import Principal, Scope
from loramux_server.core.callers.usage import Amounts, UsageKey, UsageMethod
from loramux_server.http.openai import usage as usage_module
from loramux_server.http.openai.usage import UsageQueryParameters
from loramux_server.services.access.credentials import Credentials

from .conftest import Http

PATH = "/v1/organization/usage"
NOT_TOLD_APART = {"api_key_ids", "batch", "user_ids"}


def at(day: int, hour: int = 0) -> int:
    return int(datetime(2026, 11, day, hour, tzinfo=UTC).timestamp())


@pytest.fixture
async def used(http: Http) -> Http:
    """Five days of two tenants."""
    table = http.context.store.usage
    for number, (day, tenant, adapter, method) in enumerate(
        [
            (1, "ann", "acme", UsageMethod.GENERATE),
            (1, "ann", "acme", UsageMethod.TRAIN),
            (2, "ann", "acme+json", UsageMethod.GENERATE),
            (2, "bob", "base", UsageMethod.GENERATE),
            (4, "bob", "base", UsageMethod.EMBED),
            (5, "bob", "acme", UsageMethod.GENERATE),
        ]
    ):
        key = UsageKey(date(2026, 11, day).isoformat(), tenant, adapter, method)
        table.add("run", number + 1, {key: Amounts(10**number, 2 * 10**number, 10**number, 3 * 10**number)})
    return http


@pytest.fixture
async def admin(http: Http) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=f"http://{http.server.address}/v1", api_key="none", admin_api_key="none", max_retries=0
    ) as client:
        yield client


async def test_generations_by_day_project_and_model(used: Http, admin: openai.AsyncOpenAI) -> None:
    usage = admin.admin.organization.usage
    page = await usage.completions(start_time=at(1, 5), end_time=at(3), group_by=["model", "project_id"])
    assert (page.object, page.has_more, page.next_page) == ("page", False, None)
    assert [(bucket.start_time, bucket.end_time) for bucket in page.data] == [(at(1), at(2)), (at(2), at(3))]
    found = [
        (r.project_id, r.model, r.num_model_requests, r.input_tokens, r.input_cached_tokens, r.output_tokens)  # type: ignore[union-attr]
        for bucket in page.data
        for r in bucket.results
    ]
    assert found == [
        ("ann", "acme", 1, 2, 1, 3),
        ("ann", "acme+json", 100, 200, 100, 300),
        ("bob", "base", 1000, 2000, 1000, 3000),
    ]


async def test_embeddings_and_what_is_chosen(used: Http, admin: openai.AsyncOpenAI) -> None:
    usage = admin.admin.organization.usage
    page = await usage.embeddings(start_time=at(4), end_time=at(5))
    ((result,),) = [bucket.results for bucket in page.data]
    assert (result.object, result.num_model_requests, result.input_tokens) == (
        "organization.usage.embeddings.result",
        10_000,
        20_000,
    )
    assert (result.project_id, result.model) == (None, None)  # type: ignore[union-attr]

    async def requests(**chosen: Any) -> int:
        page = await usage.completions(start_time=at(1), end_time=at(6), **chosen)
        return sum(r.num_model_requests for bucket in page.data for r in bucket.results)  # type: ignore[union-attr]

    assert await requests() == 101_101
    assert await requests(models=["json+acme", "base"]) == 1_100
    assert await requests(project_ids=["ann"]) == 101
    assert await requests(project_ids=["nobody"]) == 0


@pytest.mark.parametrize("most", [10_000, 0])
async def test_pages_go_on_where_the_last_one_ended(used: Http, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """Whatever the limit, and where a page ends early because it would be too long."""
    monkeypatch.setattr(usage_module, "MOST_RESULTS", most)
    read = used.availability.services.usage.read  # type: ignore[union-attr]
    if not most:
        monkeypatch.setattr(
            type(used.availability.services.usage),  # type: ignore[union-attr]
            "read",
            lambda self, query, page_size=1, page_token="": read(query, 1, page_token),
        )
    for limit in (1, 2, 31):
        found: list[Any] = []
        query = {"start_time": at(1), "end_time": at(6), "group_by": "model", "limit": limit}
        while True:
            page = (await used.raw.get(f"{PATH}/completions", params=query)).json()
            found += page["data"]
            assert page["has_more"] is (page["next_page"] is not None)
            assert len(page["data"]) <= limit
            if not page["has_more"]:
                break
            query["page"] = page["next_page"]
        assert [bucket["start_time"] for bucket in found] == [at(day) for day in range(1, 6)]
        assert [len(bucket["results"]) for bucket in found] == [1, 2, 0, 0, 1]


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("", "start_time"),
        ("start_time=-1", "start_time"),
        ("start_time=99999999999999", "start_time"),
        ("start_time=2026-11-01", "start_time"),
        (f"start_time={at(2)}&end_time={at(2)}", "end_time"),
        (f"start_time={at(1)}&bucket_width=1h", "bucket_width"),
        (f"start_time={at(1)}&group_by=user_id", "group_by[0]"),
        (f"start_time={at(1)}&limit=32", "limit"),
        (f"start_time={at(1)}&page=x", "page"),
        (f"start_time={at(3)}&end_time={at(5)}&page=2026-11-01", "page"),
        (f"start_time={at(1)}&start_time={at(2)}", "start_time"),
        (f"start_time={at(1)}&batch=true", "batch"),
        (f"start_time={at(1)}&models=a%00", "models[0]"),
        (f"start_time={at(1)}&project_ids[]=", "project_ids[0]"),
    ],
)
async def test_what_cannot_be_asked_is_refused_by_name(http: Http, query: str, param: str) -> None:
    answer = await http.raw.get(f"{PATH}/completions?{query}")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text


class As:
    """Takes everybody for one principal."""

    def __init__(self, principal: Principal) -> None:
        self._principal = principal

    async def authenticate(self, credentials: Credentials) -> Principal:
        return self._principal


@pytest.mark.parametrize("path", ["completions", "embeddings"])
async def test_a_tenant_is_told_its_own(used: Http, path: str) -> None:
    url = f"{PATH}/{path}?start_time={at(1)}&end_time={at(6)}&group_by[]=project_id"

    async def tenants(principal: Principal, more: str = "") -> Any:
        used.access.authenticator = As(principal)
        answer = await used.raw.get(url + more)
        if answer.status_code != 200:
            return answer.status_code
        return {result["project_id"] for bucket in answer.json()["data"] for result in bucket["results"]}

    everybody = {"bob", "ann"} if path == "completions" else {"bob"}
    assert await tenants(Principal("operations", frozenset(Scope))) == everybody
    assert await tenants(Principal("ann", frozenset({Scope.INFER}))) == everybody - {"bob"}
    assert await tenants(Principal("bob", frozenset())) == {"bob"}
    for other in ("ann", "nobody"):
        assert await tenants(Principal("bob", frozenset()), f"&project_ids[]={other}") == 403
    assert await tenants(Principal("bob", frozenset(), "k", frozenset({"acme"}))) == 403


async def test_what_was_generated_a_moment_ago_is_there(http: Http, admin: openai.AsyncOpenAI) -> None:
    """By default up to now; a day may begin meanwhile."""
    http.answers("Here.")
    began = int(time.time())
    told = await http.openai.chat.completions.create(model="base", messages=[{"role": "user", "content": "Where?"}])
    assert told.usage is not None
    page = await admin.admin.organization.usage.completions(start_time=began, group_by=["model"])
    (result,) = [result for bucket in page.data for result in bucket.results]
    assert (result.model, result.num_model_requests) == ("base", 1)  # type: ignore[union-attr]
    spent = (result.input_tokens, result.output_tokens)  # type: ignore[union-attr]
    assert spent == (told.usage.prompt_tokens, told.usage.completion_tokens)


@pytest.mark.parametrize(
    ("method", "params", "response", "kind"),
    [
        (
            "completions",
            usage_completions_params.UsageCompletionsParams,
            usage_completions_response.DataResultOrganizationUsageCompletionsResult,
            usage_module.CompletionsUsage,
        ),
        (
            "embeddings",
            usage_embeddings_params.UsageEmbeddingsParams,
            usage_embeddings_response.DataResultOrganizationUsageEmbeddingsResult,
            usage_module.EmbeddingsUsage,
        ),
    ],
)
async def test_names_are_openais(used: Http, method: str, params: type, response: Any, kind: type) -> None:
    assert params.__annotations__.keys() - UsageQueryParameters.model_fields.keys() <= NOT_TOLD_APART
    assert UsageQueryParameters.model_fields.keys() <= params.__annotations__.keys()
    assert kind.__annotations__.keys() <= response.model_fields.keys()
    answer = await used.raw.get(f"{PATH}/{method}?start_time={at(1)}&end_time={at(6)}&group_by=model")
    results = [result for bucket in answer.json()["data"] for result in bucket["results"]]
    assert results
    for result in results:
        response.model_validate(result, strict=True)
