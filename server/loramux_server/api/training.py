"""Training."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

from loramux.v1 import training_pb2 as pb

from ..core import call as calls
from ..core.errors import invalid_field
from ..services.availability import Availability
from .convert.training import (
    dataset_to_proto,
    event_to_proto,
    given_in,
    job_from_proto,
    job_to_proto,
    report_to_proto,
    spec_from_proto,
    states_from_proto,
)


class TrainingMethods:
    """``loramux.v1.TrainingService``."""

    def __init__(self, availability: Availability) -> None:
        self._open = availability.open

    async def UploadDataset(self, request_iterator: AsyncIterator[pb.UploadDatasetRequest]) -> pb.Dataset:
        service = self._open().training
        first = await anext(request_iterator, None)
        if first is None or first.WhichOneof("payload") != "header":
            raise invalid_field("header", "the first message of an upload must carry it")
        header = first.header
        if header.format not in ("", "jsonl"):
            raise invalid_field("header.format", "must be jsonl: tables are read by the client")
        pieces = _pieces(request_iterator, header.size)
        dataset = await service.upload_dataset(
            pieces,
            calls.principal(),
            name=header.name,
            sha256=header.sha256,
            announced=(header.size, header.size),
        )
        return dataset_to_proto(dataset)

    async def ListDatasets(self, request: pb.ListDatasetsRequest) -> pb.ListDatasetsResponse:
        page = await self._open().training.list_datasets(
            calls.principal(), page_size=request.page_size or 100, page_token=request.page_token
        )
        datasets = map(dataset_to_proto, page.items)
        return pb.ListDatasetsResponse(datasets=datasets, next_page_token=page.next_page_token)

    async def DeleteDataset(self, request: pb.DeleteDatasetRequest) -> pb.DeleteDatasetResponse:
        await self._open().training.delete_dataset(request.dataset_id, calls.principal())
        return pb.DeleteDatasetResponse()

    async def ValidateDataset(self, request: pb.ValidateDatasetRequest) -> pb.ValidateDatasetResponse:
        report = await self._open().training.validate_dataset(
            request.dataset_id,
            calls.principal(),
            spec=spec_from_proto(request.settings),
            recipe=request.recipe,
            given=given_in(request.settings),
            show=request.show_rows,
            from_line=request.show_from_line,
            validation_id=request.validation_dataset_id,
        )
        return report_to_proto(report)

    async def CreateJob(self, request: pb.CreateJobRequest) -> pb.Job:
        service = self._open().training
        call = calls.current()
        return job_to_proto(await service.create_job(job_from_proto(request, call), call.principal))

    async def GetJob(self, request: pb.GetJobRequest) -> pb.Job:
        return job_to_proto(await self._open().training.get_job(request.job_id, calls.principal()))

    async def ListJobs(self, request: pb.ListJobsRequest) -> pb.ListJobsResponse:
        page = await self._open().training.list_jobs(
            calls.principal(),
            states=states_from_proto(request.states),
            name=request.name,
            page_size=request.page_size or 100,
            page_token=request.page_token,
        )
        return pb.ListJobsResponse(jobs=[job_to_proto(j) for j in page.items], next_page_token=page.next_page_token)

    async def CancelJob(self, request: pb.CancelJobRequest) -> pb.Job:
        return job_to_proto(await self._open().training.cancel_job(request.job_id, calls.principal()))

    async def PauseJob(self, request: pb.PauseJobRequest) -> pb.Job:
        return job_to_proto(await self._open().training.pause_job(request.job_id, calls.principal()))

    async def ResumeJob(self, request: pb.ResumeJobRequest) -> pb.Job:
        return job_to_proto(await self._open().training.resume_job(request.job_id, calls.principal()))

    async def WatchJob(self, request: pb.WatchJobRequest) -> AsyncGenerator[pb.JobEvent]:
        events = self._open().training.watch_job(
            request.job_id, calls.principal(), after_sequence=request.after_sequence
        )
        async with aclosing(events):
            async for event in events:
                yield event_to_proto(event)


async def _pieces(requests: AsyncIterator[pb.UploadDatasetRequest], size: int) -> AsyncIterator[bytes]:
    """The bytes of the file; when the header gives its size, not one more or less."""
    seen = 0
    async for request in requests:
        if request.WhichOneof("payload") != "chunk":
            raise invalid_field("chunk", "every message after the first must carry the next bytes")
        seen += len(request.chunk)
        if size and seen > size:
            raise invalid_field("header.size", f"is {size}, but more bytes came")
        yield request.chunk
    if size and seen != size:
        raise invalid_field("header.size", f"is {size}, but {seen} bytes came")
