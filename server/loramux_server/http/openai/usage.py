"""``/v1/organization/usage``: usage as OpenAI's administrators read it, in buckets of a day of UTC.

A tenant is a project there, and the label of a stack a model: the adapter, ``acme+json``, or ``base``.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime, time, timedelta
from typing import Annotated, Any, Literal

from pydantic import Field
from starlette.datastructures import QueryParams
from typing_extensions import TypedDict

from ...core import call as calls
from ...core.callers.usage import Dimension, UsageMethod, UsageQuery, UsageRow
from ...core.errors import invalid_field
from ...services.availability import Availability
from ...services.usage.service import tenants_of
from ..bodies.fields import Strict, read
from ..description.describe import describe
from ..exchanges.exchange import Exchange

MOST_RESULTS = 10_000
"""Results after which a page ends with the bucket that it is in."""
LAST_SECOND = 253_370_764_800
"""1 January 9999: what a calendar can still add a day to."""
_DIMENSIONS = {"project_id": Dimension.TENANT, "model": Dimension.ADAPTER}
_LISTS = ("group_by", "project_ids", "models")


Word = Annotated[str, Field(pattern=r"^[!-~]{1,640}$")]


class UsageQueryParameters(Strict):
    """Which usage; times are seconds since 1970, and the days that they are in count whole."""

    start_time: Annotated[int, Field(ge=0, le=LAST_SECOND)]
    end_time: Annotated[int, Field(ge=0, le=LAST_SECOND)] | None = None
    """The first second that is left out; None: now."""
    bucket_width: Literal["1d"] = "1d"
    group_by: tuple[Literal["project_id", "model"], ...] = ()
    project_ids: list[Word] | None = None
    models: list[Word] | None = None
    limit: Annotated[int, Field(ge=1, le=31)] = 7
    page: str = ""


class CompletionsUsage(TypedDict):
    """What generations used."""

    object: Literal["organization.usage.completions.result"]
    input_tokens: int
    input_cached_tokens: int
    output_tokens: int
    num_model_requests: int
    project_id: str | None
    model: str | None
    user_id: None
    api_key_id: None
    batch: None
    service_tier: None


class EmbeddingsUsage(TypedDict):
    """What embeddings used."""

    object: Literal["organization.usage.embeddings.result"]
    input_tokens: int
    num_model_requests: int
    project_id: str | None
    model: str | None
    user_id: None
    api_key_id: None


class CompletionsBucket(TypedDict):
    """A day, with a result for each group that used something."""

    object: Literal["bucket"]
    start_time: int
    end_time: int
    results: list[CompletionsUsage]


class EmbeddingsBucket(TypedDict):
    """A day, with a result for each group that used something."""

    object: Literal["bucket"]
    start_time: int
    end_time: int
    results: list[EmbeddingsUsage]


class CompletionsUsagePage(TypedDict):
    """Days, oldest first."""

    object: Literal["page"]
    data: list[CompletionsBucket]
    has_more: bool
    next_page: str | None


class EmbeddingsUsagePage(TypedDict):
    """Days, oldest first."""

    object: Literal["page"]
    data: list[EmbeddingsBucket]
    has_more: bool
    next_page: str | None


class UsageOf:
    """Usage by method. Callers without the scope ``admin`` get that of their own tenant."""

    def __init__(self, availability: Availability) -> None:
        self._availability = availability

    @describe(query=UsageQueryParameters, answer=CompletionsUsagePage)
    async def completions(self, exchange: Exchange) -> None:
        """What generations used, by day."""
        await self._send(exchange, UsageMethod.GENERATE)

    @describe(query=UsageQueryParameters, answer=EmbeddingsUsagePage)
    async def embeddings(self, exchange: Exchange) -> None:
        """What embeddings used, by day."""
        await self._send(exchange, UsageMethod.EMBED)

    async def _send(self, exchange: Exchange, method: UsageMethod) -> None:
        asked = read(UsageQueryParameters, _given(exchange.request.query_params))
        first, end = _days(asked)
        last = min(end, first + timedelta(days=asked.limit))
        query = UsageQuery(
            since=first,
            until=last,
            group_by=(Dimension.DAY, *(_DIMENSIONS[name] for name in asked.group_by)),
            tenants=tenants_of(calls.principal(), asked.project_ids or ()),
            labels=None if asked.models is None else [_label(model) for model in asked.models],
            methods=(method,),
        )
        rows, last = await self._rows(query)
        days = [first + timedelta(days=number) for number in range((last - first).days)]
        data = [_bucket(day, [row for row in rows if row.day == day.isoformat()], method) for day in days]
        more = last < end
        page = {"object": "page", "data": data, "has_more": more, "next_page": last.isoformat() if more else None}
        await exchange.send_json(page)

    async def _rows(self, query: UsageQuery) -> tuple[list[UsageRow], date]:
        """The rows of whole days, and the first day that they leave out: they are many, but no more than a page."""
        service = self._availability.open().usage
        found: list[UsageRow] = []
        token = ""
        while True:
            page = await service.read(query, page_token=token)
            found += page.items
            token = page.next_page_token
            if not token:
                return found, query.until
            begun = found[-1].day  # there may be more of it
            if len(found) > MOST_RESULTS and found[0].day != begun:
                return [row for row in found if row.day != begun], date.fromisoformat(begun)


def _given(parameters: QueryParams) -> dict[str, Any]:
    """The parameters by name. Lists are repeated, with or without brackets. INVALID_ARGUMENT for others given twice."""
    found: dict[str, Any] = {}
    for key, value in parameters.multi_items():
        name = key.removesuffix("[]")
        if name in _LISTS:
            found.setdefault(name, []).append(value)
        elif key in found:
            raise invalid_field(key, "is given twice")
        else:
            found[key] = value
    return found


def _days(asked: UsageQueryParameters) -> tuple[date, date]:
    """The first day of the page, and the first that is left out altogether. Raises INVALID_ARGUMENT."""
    first, now = _day(asked.start_time), int(datetime.now(UTC).timestamp())
    until = now + 1 if asked.end_time is None else asked.end_time
    if until <= asked.start_time:
        raise invalid_field("end_time", f"is {until}; it must be after start_time, {asked.start_time}")
    end = _day(until - 1) + timedelta(days=1)
    if asked.page:
        try:
            page = date.fromisoformat(asked.page)
        except ValueError:
            page = first
        if not first < page < end:
            raise invalid_field("page", "is not one that this server gave; begin again without it")
        first = page
    return first, end


def _day(at: int) -> date:
    return datetime.fromtimestamp(at, UTC).date()


def _label(model: str) -> str:
    """A stack as usage has it: the names in alphabetical order."""
    return "+".join(sorted(model.split("+")))


def _bucket(day: date, rows: Sequence[UsageRow], method: UsageMethod) -> dict[str, Any]:
    start = int(datetime.combine(day, time.min, UTC).timestamp())
    result = _completions if method is UsageMethod.GENERATE else _embeddings
    return {"object": "bucket", "start_time": start, "end_time": start + 86_400, "results": [*map(result, rows)]}


def _completions(row: UsageRow) -> CompletionsUsage:
    return {
        "object": "organization.usage.completions.result",
        "input_tokens": row.input_tokens,
        "input_cached_tokens": row.cached_tokens,
        "output_tokens": row.output_tokens,
        "num_model_requests": row.requests,
        "project_id": row.tenant or None,
        "model": row.adapter or None,
        "user_id": None,
        "api_key_id": None,
        "batch": None,
        "service_tier": None,
    }


def _embeddings(row: UsageRow) -> EmbeddingsUsage:
    return {
        "object": "organization.usage.embeddings.result",
        "input_tokens": row.input_tokens,
        "num_model_requests": row.requests,
        "project_id": row.tenant or None,
        "model": row.adapter or None,
        "user_id": None,
        "api_key_id": None,
    }
