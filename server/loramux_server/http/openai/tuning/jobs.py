"""``/v1/fine_tuning/jobs``: training jobs as OpenAI has them."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from ....core import call as calls
from ....core.backend import EngineInfo
from ....core.errors import Error
from ....services.availability import Availability
from ....services.jobs.service import TrainingService
from ....store.records import EventRecord, JobRecord
from ...bodies.fields import read
from ...description.describe import describe
from ...exchanges.exchange import Exchange
from .convert import AskedJob
from .ids import own_job_id, sequence_of
from .objects import checkpoint_object, event_object, job_object
from .queries import MOST_ITEMS, EventsQuery, ItemsQuery, JobsQuery, given, jobs_query, listed, listed_with_ids
from .requests import CreateJob
from .shapes import CheckpointPage, EventPage, FineTuningEvent, FineTuningJob, JobPage

IDEMPOTENCY_KEY = "idempotency-key"


class FineTuningJobs:
    """Makes jobs, tells how they go, and ends them."""

    def __init__(self, availability: Availability) -> None:
        self._availability = availability

    @describe(body=CreateJob, answer=FineTuningJob, headers=(IDEMPOTENCY_KEY,))
    async def create(self, exchange: Exchange) -> None:
        """Check everything, then queue a job."""
        body, service = await exchange.json(), self._service
        asked = AskedJob(read(CreateJob, body), self._info)
        call = calls.current()
        request = asked.request(call, exchange.request_headers.get(IDEMPOTENCY_KEY, ""))
        try:
            job = await service.create_job(request, call.principal)
        except Error as error:
            raise asked.named(error) from error
        await self._send(exchange, job)

    @describe(query=JobsQuery, answer=JobPage)
    async def list(self, exchange: Exchange) -> None:
        """A page of jobs, newest first, with the metadata that are asked for."""
        query = jobs_query(exchange.request.query_params)
        service, after = self._service, own_job_id(query.after)
        found: list[JobRecord] = []
        token = ""
        while True:
            size = min(MOST_ITEMS, query.limit + 1)
            page = await service.list_jobs(calls.principal(), page_size=size, page_token=token, after=after)
            found += [job for job in page.items if query.wants(job.request.metadata)]
            token = page.next_page_token
            if not token or len(found) > query.limit:
                break
        data = [job_object(job, self._info) for job in found[: query.limit]]
        await exchange.send_json(listed(data, len(found) > query.limit))

    @describe(answer=FineTuningJob)
    async def retrieve(self, exchange: Exchange) -> None:
        """One."""
        await self._send(exchange, await self._job(exchange))

    @describe(answer=FineTuningJob)
    async def cancel(self, exchange: Exchange) -> None:
        """End one for good."""
        await self._send(exchange, await self._service.cancel_job(_asked_for(exchange), calls.principal()))

    @describe(answer=FineTuningJob)
    async def pause(self, exchange: Exchange) -> None:
        """Stop one until it is resumed."""
        await self._send(exchange, await self._service.pause_job(_asked_for(exchange), calls.principal()))

    @describe(answer=FineTuningJob)
    async def resume(self, exchange: Exchange) -> None:
        """Queue one that was paused or has failed again."""
        await self._send(exchange, await self._service.resume_job(_asked_for(exchange), calls.principal()))

    @describe(query=EventsQuery, answer=EventPage, events=FineTuningEvent)
    async def events(self, exchange: Exchange) -> None:
        """A page of events, newest first; or all behind ``after`` as they come, oldest first."""
        query = read(EventsQuery, given(exchange.request.query_params))
        service, principal, id = self._service, calls.principal(), _asked_for(exchange)
        last = sequence_of(query.after, id) if query.after else None
        if query.stream:
            async with exchange.ended_by_disconnect():
                await exchange.send_events(_stream(service.watch_job(id, principal, after_sequence=last or 0)))
            return
        found = await service.list_events(id, principal, before=last, limit=query.limit + 1)
        await exchange.send_json(listed([*map(event_object, found[: query.limit])], len(found) > query.limit))

    @describe(query=ItemsQuery, answer=CheckpointPage)
    async def checkpoints(self, exchange: Exchange) -> None:
        """The published version, once there is one."""
        query = read(ItemsQuery, given(exchange.request.query_params))
        job = await self._job(exchange)
        found = [checkpoint_object(job)] if job.adapter and not query.after else []
        await exchange.send_json(listed_with_ids(found, has_more=False))

    @property
    def _service(self) -> TrainingService:
        return self._availability.open().training

    @property
    def _info(self) -> EngineInfo:
        context = self._availability.context
        assert context is not None
        return context.info

    async def _job(self, exchange: Exchange) -> JobRecord:
        return await self._service.get_job(_asked_for(exchange), calls.principal())

    async def _send(self, exchange: Exchange, job: JobRecord) -> None:
        await exchange.send_json(job_object(job, self._info))


async def _stream(events: AsyncGenerator[EventRecord]) -> AsyncGenerator[Any]:
    async with aclosing(events):
        async for event in events:
            yield event_object(event)
    yield "[DONE]"


def _asked_for(exchange: Exchange) -> str:
    return own_job_id(exchange.path_params["job_id"])
