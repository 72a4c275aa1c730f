"""Adapters, datasets and jobs of the sync client."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeVar, Unpack

import grpc

from . import _files, _requests, _responses
from ._fields import assign, filled
from ._files import Data
from ._requests import Gate, TrainOptions
from ._stacks import Adapters as Stack
from ._transport import Transport, pages
from ._watch import Watch, published
from .convert import As
from .errors import LoramuxError, nothing_to_roll_back
from .progress import progress_display
from .types import SETTLED_STATES, Adapter, AdapterVersion, Dataset, DatasetReport, JobEvent, JobInfo
from .v1 import adapters_pb2, training_pb2

Q = TypeVar("Q")


class Adapters:
    """The registry. A reference is ``name`` (the current version), ``name@3`` or ``name@alias``."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._stub = transport.adapters

    def list(self, *, prefix: str = "", limit: int | None = None) -> list[Adapter]:
        """The adapters that the caller may use, by name, ``limit`` at most."""

        def fetch(token: str) -> tuple[Iterable[adapters_pb2.Adapter], str]:
            request = filled(adapters_pb2.ListAdaptersRequest(page_token=token), prefix=prefix)
            answer = self._transport.unary(self._stub.ListAdapters, request)
            return answer.adapters, answer.next_page_token

        return [_responses.adapter(message) for message in pages(fetch, limit)]

    def get(self, ref: str) -> Adapter:
        """An adapter with its versions."""
        request = filled(adapters_pb2.GetAdapterRequest(), adapter=ref)
        return _responses.adapter(self._transport.unary(self._stub.GetAdapter, request))

    def upload(
        self,
        name: str,
        folder: str | os.PathLike[str],
        *,
        set_current: bool = True,
        metadata: Mapping[str, str] | None = None,
    ) -> AdapterVersion:
        """Publish a PEFT folder as the next version of ``name``; it can be used when this returns."""
        messages = _files.upload_adapter(name, folder, set_current=set_current, metadata=metadata)
        return _responses.adapter_version(self._transport.upload(self._stub.UploadAdapter, messages))

    def download(self, ref: str, folder: str | os.PathLike[str]) -> AdapterVersion:
        """Write a version as a PEFT folder (made if need be, files of the same names are replaced)."""
        request = filled(adapters_pb2.DownloadAdapterRequest(), adapter=ref)
        with _files.AdapterWriter(folder) as writer:
            for message in self._transport.stream(self._stub.DownloadAdapter, request):
                writer.write(message)
            return writer.finish()

    def compose(
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
        """Merge a stack into the next version of ``name``; it can be used when this returns.

        ``cat`` is exact, its rank the sum of the parts'. ``svd`` is the best approximation of ``rank`` (None: the
        largest part's). ``linear``, ``ties``, ``dare_ties`` and ``magnitude_prune`` are PEFT's approximations for
        adapters of one rank; the last three keep a share ``density`` of the values, ``dare_ties`` draws them from
        ``seed``. The answer's ``composed.error`` is what the merge misses of the stack.
        """
        request = _requests.compose(name, adapters, method, metadata, rank=rank, density=density, seed=seed)
        return _responses.adapter_version(self._transport.unary(self._stub.ComposeAdapter, request).version)

    merge = compose
    """The same under another name."""

    def delete(self, ref: str) -> int:
        """Delete a version, or with a plain name all of them; gives the number of versions that are gone."""
        request = filled(adapters_pb2.DeleteAdapterRequest(), adapter=ref)
        return self._transport.unary(self._stub.DeleteAdapter, request).versions_deleted

    def set_alias(self, name: str, version: int, *, alias: str = "") -> Adapter:
        """Make the plain name (or ``name@alias``) mean ``version``: promote or roll back. 0 removes an alias."""
        request = filled(adapters_pb2.SetAliasRequest(), name=name, version=version, alias=alias)
        return _responses.adapter(self._transport.unary(self._stub.SetAlias, request))

    def promote(self, name: str, version: int) -> Adapter:
        """Make the plain name mean ``version`` from the next request on."""
        return self.set_alias(name, version)

    def rollback(self, name: str) -> Adapter:
        """Make the plain name mean the version again that it meant before; a second call undoes that.

        Raises FailedPrecondition when there is none.
        """
        previous = (self.get(name)).previous_version
        if not previous:
            raise nothing_to_roll_back(name)
        return self.set_alias(name, previous)

    def pin(self, ref: str) -> Adapter:
        """Keep a version resident."""
        request = filled(adapters_pb2.PinAdapterRequest(), adapter=ref)
        return _responses.adapter(self._transport.unary(self._stub.PinAdapter, request))

    def unpin(self, ref: str) -> Adapter:
        """Let a version be evicted again."""
        request = filled(adapters_pb2.UnpinAdapterRequest(), adapter=ref)
        return _responses.adapter(self._transport.unary(self._stub.UnpinAdapter, request))


class Datasets:
    """Training data on the server."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._stub = transport.training

    def upload(self, data: Data, *, as_: As | None = None) -> Dataset:
        """Store a file or rows; ``as_`` (``"messages"``, ``"prompt"``) turns them first, as ``convert`` does."""
        return _responses.dataset(self._transport.upload(self._stub.UploadDataset, _files.upload_dataset(data, as_)))

    def validate(
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
        return self.show(data, rows=0, validation=validation, recipe=recipe, as_=as_, **settings)

    def show(
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
        settled = _requests.train_settings(settings)
        dataset = data if isinstance(data, Dataset) else self.upload(data, as_=as_)
        request = training_pb2.ValidateDatasetRequest(dataset_id=dataset.id, settings=settled)
        assign(request, {"show_rows": rows, "show_from_line": line, "recipe": recipe or ""})
        if validation is not None:
            held_out = validation if isinstance(validation, Dataset) else self.upload(validation, as_=as_)
            request.validation_dataset_id = held_out.id
        return _responses.dataset_report(self._transport.unary(self._stub.ValidateDataset, request))


class Jobs:
    """Training jobs."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._stub = transport.training

    def create(
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
    ) -> Job:
        """As ``Client.train``."""
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
        datasets = Datasets(self._transport)
        request.dataset_id = datasets.upload(data, as_=as_).id
        if validation is not None:
            request.validation_dataset_id = datasets.upload(validation, as_=as_).id
        if replay is not None:
            shipped = isinstance(replay, str) and replay == "default"
            request.settings.replay = "default" if shipped else datasets.upload(replay).id
        return Job(self._transport, _responses.job(self._transport.unary(self._stub.CreateJob, request)))

    def list(self, *, states: Sequence[str] = (), name: str = "", limit: int | None = None) -> list[JobInfo]:
        """Jobs of the caller, newest first, ``limit`` at most; only those in ``states`` and for ``name`` if given."""
        wanted = _requests.job_states(states)

        def fetch(token: str) -> tuple[Iterable[training_pb2.Job], str]:
            request = filled(training_pb2.ListJobsRequest(states=wanted, page_token=token), name=name)
            answer = self._transport.unary(self._stub.ListJobs, request)
            return answer.jobs, answer.next_page_token

        return [_responses.job(message) for message in pages(fetch, limit)]

    def get(self, job_id: str) -> Job:
        """The handle of a job."""
        request = filled(training_pb2.GetJobRequest(), job_id=job_id)
        return Job(self._transport, _responses.job(self._transport.unary(self._stub.GetJob, request)))


class Job:
    """A handle on a training job."""

    def __init__(self, transport: Transport, info: JobInfo) -> None:
        self._transport = transport
        self._stub = transport.training
        self.info = info
        """As the server last told; ``refresh`` asks again."""

    def __repr__(self) -> str:
        return f"<Job {self.id} {self.info.name!r} {self.info.state} {self.info.step}/{self.info.total_steps}>"

    @property
    def id(self) -> str:
        return self.info.id

    @property
    def state(self) -> str:
        """Where it stands now (asks the server until the state is final)."""
        return self.refresh().state

    @property
    def metrics(self) -> dict[str, float]:
        """Its latest figures (asks the server until the state is final)."""
        return self.refresh().metrics

    def refresh(self) -> JobInfo:
        """Ask the server how the job stands."""
        if self.info.state not in SETTLED_STATES:
            request = filled(training_pb2.GetJobRequest(), job_id=self.id)
            self.info = _responses.job(self._transport.unary(self._stub.GetJob, request))
        return self.info

    def events(self, *, after_sequence: int = 0, timeout: float | None = None) -> Iterator[JobEvent]:
        """What happened and what happens, in order, until the job has ended. Lost connections are taken up again."""
        watch = Watch(self.id, after_sequence, timeout)
        while not watch.ended():
            failure: LoramuxError | None = None
            stream = self._transport.stream(self._stub.WatchJob, watch.request(), watch.remaining())
            try:
                for message in stream:
                    event = watch.take(message)
                    if event is not None:
                        yield event
            except LoramuxError as error:
                failure = error
            finally:
                stream.close()
            time.sleep(watch.retry_delay(failure))

    def wait(self, *, progress: bool = False, timeout: float | None = None) -> AdapterVersion:
        """Wait until the job has ended and give the version that it published.

        ``progress`` shows a bar with step, loss and time left on a terminal, plain lines elsewhere (on stderr).
        Raises JobFailed with the reason when nothing was published, DeadlineExceeded after ``timeout`` seconds (the
        job goes on then).
        """
        with progress_display(self.info.name, enabled=progress) as display:
            for event in self.events(timeout=timeout):
                display.show(event)
        return published(self.refresh())

    def cancel(self) -> JobInfo:
        """End the job for good."""
        return self._move(self._stub.CancelJob, training_pb2.CancelJobRequest(job_id=self.id))

    def pause(self) -> JobInfo:
        """Stop the job at its next step."""
        return self._move(self._stub.PauseJob, training_pb2.PauseJobRequest(job_id=self.id))

    def resume(self) -> JobInfo:
        """Let a paused or failed job go on from its last checkpoint."""
        return self._move(self._stub.ResumeJob, training_pb2.ResumeJobRequest(job_id=self.id))

    def _move(self, method: grpc.UnaryUnaryMultiCallable[Q, training_pb2.Job], request: Q) -> JobInfo:
        self.info = _responses.job(self._transport.unary(method, request))
        return self.info
