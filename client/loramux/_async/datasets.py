"""Training data on the server."""

from __future__ import annotations

from typing import Unpack

from .._wire import files
from .._wire.files import Data
from .._wire.io_async import blocking
from .._wire.messages import responses, train_requests
from .._wire.messages.fields import assign
from .._wire.messages.train_requests import TrainOptions
from ..convert import As
from ..types import Dataset, DatasetReport
from ..v1 import training_pb2
from .transport import AsyncTransport


class AsyncDatasets:
    """Training data on the server."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport
        self._stub = transport.training

    async def upload(self, data: Data, *, as_: As | None = None) -> Dataset:
        """Store a file or rows; ``as_`` (``"messages"``, ``"prompt"``) turns them first, as ``convert`` does."""
        messages = await blocking(files.upload_dataset, data, as_)
        return responses.dataset(await self._transport.upload(self._stub.UploadDataset, messages))

    async def list(self, *, limit: int | None = None) -> list[Dataset]:
        """Datasets of the caller, newest first, ``limit`` at most."""
        request = training_pb2.ListDatasetsRequest()
        found = await self._transport.items(self._stub.ListDatasets, request, "datasets", limit)
        return [responses.dataset(message) for message in found]

    async def delete(self, dataset: Dataset | str) -> None:
        """Delete a dataset, given as such or by its id. FailedPrecondition while a job that may still run has it."""
        request = training_pb2.DeleteDatasetRequest()
        assign(request, {"dataset_id": dataset.id if isinstance(dataset, Dataset) else dataset})
        await self._transport.unary(self._stub.DeleteDataset, request)

    async def validate(
        self,
        data: Data | Dataset,
        *,
        validation: Data | Dataset | None = None,
        recipe: str | None = None,
        as_: As | None = None,
        **settings: Unpack[TrainOptions],
    ) -> DatasetReport:
        """Check data as a job with these settings or this ``recipe`` would, and tell what they hold and cost.

        With held-out data as ``validation``, ``notes`` tell how many of their rows are training rows.
        """
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
        """As ``validate``, and ``shown`` has ``rows`` good rows from ``line`` on with what is learned of them."""
        settled = train_requests.train_settings(settings)
        dataset = data if isinstance(data, Dataset) else await self.upload(data, as_=as_)
        request = training_pb2.ValidateDatasetRequest(dataset_id=dataset.id, settings=settled)
        assign(request, {"show_rows": rows, "show_from_line": line, "recipe": recipe or ""})
        if validation is not None:
            held_out = validation if isinstance(validation, Dataset) else await self.upload(validation, as_=as_)
            request.validation_dataset_id = held_out.id
        return responses.dataset_report(await self._transport.unary(self._stub.ValidateDataset, request))
