"""Adapters, datasets and jobs of the async client; everything means the same as in ``_resources``."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import TypeVar, Unpack

import grpc.aio

from . import _files, _requests, _responses
from ._aio_transport import AsyncTransport, pages
from ._fields import assign, filled
from ._files import Data
from ._requests import Gate, TrainOptions
from ._stacks import Adapters as Stack
from ._watch import Watch, published
from .convert import As
from .errors import LoramuxError, nothing_to_roll_back
from .progress import progress_display
from .types import SETTLED_STATES, Adapter, AdapterVersion, Dataset, DatasetReport, JobEvent, JobInfo
from .v1 import adapters_pb2, training_pb2

Q = TypeVar("Q")


class AsyncAdapters:
    """The registry."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport
        self._stub = transport.adapters

    async def list(self, *, prefix: str = "", limit: int | None = None) -> list[Adapter]:
        async def fetch(token: str) -> tuple[Iterable[adapters_pb2.Adapter], str]:
            request = filled(adapters_pb2.ListAdaptersRequest(page_token=token), prefix=prefix)
            answer = await self._transport.unary(self._stub.ListAdapters, request)
            return answer.adapters, answer.next_page_token

        return [_responses.adapter(message) async for message in pages(fetch, limit)]

    async def get(self, ref: str) -> Adapter:
        request = filled(adapters_pb2.GetAdapterRequest(), adapter=ref)
        return _responses.adapter(await self._transport.unary(self._stub.GetAdapter, request))

    async def upload(
        self,
        name: str,
        folder: str | os.PathLike[str],
        *,
        set_current: bool = True,
        metadata: Mapping[str, str] | None = None,
    ) -> AdapterVersion:
        messages = await asyncio.to_thread(
            _files.upload_adapter, name, folder, set_current=set_current, metadata=metadata
        )
        return _responses.adapter_version(await self._transport.upload(self._stub.UploadAdapter, messages))

    async def download(self, ref: str, folder: str | os.PathLike[str]) -> AdapterVersion:
        request = filled(adapters_pb2.DownloadAdapterRequest(), adapter=ref)
        with _files.AdapterWriter(folder) as writer:
            async for message in self._transport.stream(self._stub.DownloadAdapter, request):
                await asyncio.to_thread(writer.write, message)
            return writer.finish()

    async def compose(
        self,
        name: str,
        adapters: Stack,
        *,
        method: str = "cat",
        rank: int | None = None,
        density: float | None = None,
        seed: int | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> AdapterVersion:
        request = _requests.compose(name, adapters, method, metadata, rank=rank, density=density, seed=seed)
        return _responses.adapter_version((await self._transport.unary(self._stub.ComposeAdapter, request)).version)

    merge = compose

    async def delete(self, ref: str) -> int:
        request = filled(adapters_pb2.DeleteAdapterRequest(), adapter=ref)
        return (await self._transport.unary(self._stub.DeleteAdapter, request)).versions_deleted

    async def set_alias(self, name: str, version: int, *, alias: str = "") -> Adapter:
        request = filled(adapters_pb2.SetAliasRequest(), name=name, version=version, alias=alias)
        return _responses.adapter(await self._transport.unary(self._stub.SetAlias, request))

    async def promote(self, name: str, version: int) -> Adapter:
        return await self.set_alias(name, version)

    async def rollback(self, name: str) -> Adapter:
        previous = (await self.get(name)).previous_version
        if not previous:
            raise nothing_to_roll_back(name)
        return await self.set_alias(name, previous)

    async def pin(self, ref: str) -> Adapter:
        request = filled(adapters_pb2.PinAdapterRequest(), adapter=ref)
        return _responses.adapter(await self._transport.unary(self._stub.PinAdapter, request))

    async def unpin(self, ref: str) -> Adapter:
        request = filled(adapters_pb2.UnpinAdapterRequest(), adapter=ref)
        return _responses.adapter(await self._transport.unary(self._stub.UnpinAdapter, request))


class AsyncDatasets:
    """Training data on the server."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport
        self._stub = transport.training

    async def upload(self, data: Data, *, as_: As | None = None) -> Dataset:
        messages = await asyncio.to_thread(_files.upload_dataset, data, as_)
        return _responses.dataset(await self._transport.upload(self._stub.UploadDataset, messages))

    async def validate(
        self,
        data: Data | Dataset,
        *,
        validation: Data | Dataset | None = None,
        recipe: str | None = None,
        as_: As | None = None,
        **settings: Unpack[TrainOptions],
    ) -> DatasetReport:
        return await self.show(data, rows=0, validation=validation, recipe=recipe, as_=as_, **settings)

    async def show(
        self,
        data: Data | Dataset,
        *,
        rows: int = 5,
        line: int = 0,
        validation: Data | Dataset | None = None,
        recipe: str | None = None,
        as_: As | None = None,
        **settings: Unpack[TrainOptions],
    ) -> DatasetReport:
        settled = _requests.train_settings(settings)
        dataset = data if isinstance(data, Dataset) else await self.upload(data, as_=as_)
        request = training_pb2.ValidateDatasetRequest(dataset_id=dataset.id, settings=settled)
        assign(request, {"show_rows": rows, "show_from_line": line, "recipe": recipe or ""})
        if validation is not None:
            held_out = validation if isinstance(validation, Dataset) else await self.upload(validation, as_=as_)
            request.validation_dataset_id = held_out.id
        return _responses.dataset_report(await self._transport.unary(self._stub.ValidateDataset, request))


class AsyncJobs:
    """Training jobs."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport
        self._stub = transport.training

    async def create(
        self,
        name: str,
        data: Data,
        *,
        validation: Data | None = None,
        replay: Data | None = None,
        on_top_of: Stack | Sequence[Stack] | None = None,
        init_from: str | None = None,
        gate: Gate | None = None,
        compare_prompt: str | None = None,
        recipe: str | None = None,
        as_: As | None = None,
        metadata: dict[str, str] | None = None,
        idempotency_key: str | None = None,
        **settings: Unpack[TrainOptions],
    ) -> AsyncJob:
        request = _requests.create_job(
            name,
            on_top_of=on_top_of,
            init_from=init_from,
            gate=gate,
            compare_prompt=compare_prompt,
            recipe=recipe,
            metadata=metadata,
            idempotency_key=idempotency_key or uuid.uuid4().hex,
            options=settings,
        )
        datasets = AsyncDatasets(self._transport)
        request.dataset_id = (await datasets.upload(data, as_=as_)).id
        if validation is not None:
            request.validation_dataset_id = (await datasets.upload(validation, as_=as_)).id
        if replay is not None:
            shipped = isinstance(replay, str) and replay == "default"
            request.settings.replay = "default" if shipped else (await datasets.upload(replay)).id
        return AsyncJob(self._transport, _responses.job(await self._transport.unary(self._stub.CreateJob, request)))

    async def list(self, *, states: Sequence[str] = (), name: str = "", limit: int | None = None) -> list[JobInfo]:
        wanted = _requests.job_states(states)

        async def fetch(token: str) -> tuple[Iterable[training_pb2.Job], str]:
            request = filled(training_pb2.ListJobsRequest(states=wanted, page_token=token), name=name)
            answer = await self._transport.unary(self._stub.ListJobs, request)
            return answer.jobs, answer.next_page_token

        return [_responses.job(message) async for message in pages(fetch, limit)]

    async def get(self, job_id: str) -> AsyncJob:
        request = filled(training_pb2.GetJobRequest(), job_id=job_id)
        return AsyncJob(self._transport, _responses.job(await self._transport.unary(self._stub.GetJob, request)))


class AsyncJob:
    """A handle on a training job. ``state`` and ``metrics`` are as last told: ``await refresh()`` asks again."""

    def __init__(self, transport: AsyncTransport, info: JobInfo) -> None:
        self._transport = transport
        self._stub = transport.training
        self.info = info

    def __repr__(self) -> str:
        return f"<AsyncJob {self.id} {self.info.name!r} {self.state} {self.info.step}/{self.info.total_steps}>"

    @property
    def id(self) -> str:
        return self.info.id

    @property
    def state(self) -> str:
        return self.info.state

    @property
    def metrics(self) -> dict[str, float]:
        return self.info.metrics

    async def refresh(self) -> JobInfo:
        """Ask the server how the job stands."""
        if self.info.state not in SETTLED_STATES:
            request = filled(training_pb2.GetJobRequest(), job_id=self.id)
            self.info = _responses.job(await self._transport.unary(self._stub.GetJob, request))
        return self.info

    async def events(self, *, after_sequence: int = 0, timeout: float | None = None) -> AsyncIterator[JobEvent]:
        """As ``Job.events``."""
        watch = Watch(self.id, after_sequence, timeout)
        while not watch.ended():
            failure: LoramuxError | None = None
            stream = self._transport.stream(self._stub.WatchJob, watch.request(), watch.remaining())
            try:
                async for message in stream:
                    event = watch.take(message)
                    if event is not None:
                        yield event
            except LoramuxError as error:
                failure = error
            finally:
                stream.close()
            await asyncio.sleep(watch.retry_delay(failure))

    async def wait(self, *, progress: bool = False, timeout: float | None = None) -> AdapterVersion:
        """As ``Job.wait``."""
        with progress_display(self.info.name, enabled=progress) as display:
            async for event in self.events(timeout=timeout):
                display.show(event)
        return published(await self.refresh())

    async def cancel(self) -> JobInfo:
        """End the job for good."""
        return await self._move(self._stub.CancelJob, training_pb2.CancelJobRequest(job_id=self.id))

    async def pause(self) -> JobInfo:
        """Stop the job at its next step."""
        return await self._move(self._stub.PauseJob, training_pb2.PauseJobRequest(job_id=self.id))

    async def resume(self) -> JobInfo:
        """Let a paused or failed job go on from its last checkpoint."""
        return await self._move(self._stub.ResumeJob, training_pb2.ResumeJobRequest(job_id=self.id))

    async def _move(self, method: grpc.aio.UnaryUnaryMultiCallable[Q, training_pb2.Job], request: Q) -> JobInfo:
        self.info = _responses.job(await self._transport.unary(method, request))
        return self.info
