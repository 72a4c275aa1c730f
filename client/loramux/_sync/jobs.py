# Generated from _async/jobs.py by tools/sync_client.py (make client); do not edit.
"""Training jobs and their handles."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from typing import TypeVar, Unpack

import grpc

from .._wire.documents import Documents, read_documents
from .._wire.files import Data
from .._wire.io_sync import blocking, latest, sleep
from .._wire.messages import responses, train_requests
from .._wire.messages.fields import filled
from .._wire.messages.stacks import Adapters as Stack
from .._wire.messages.train_requests import Gate, TrainOptions
from .._wire.watch import Watch, published
from ..convert import As
from ..errors import LoramuxError
from ..progress import progress_display
from ..types import SETTLED_STATES, AdapterVersion, JobEvent, JobInfo
from ..v1 import training_pb2
from .datasets import Datasets
from .transport import Transport

Q = TypeVar("Q")


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
        compare_documents: Documents | None = None,
        compare_top_k: int | None = None,
        recipe: str | None = None,
        as_: As | None = None,
        metadata: dict[str, str] | None = None,
        idempotency_key: str | None = None,
        **settings: Unpack[TrainOptions],
    ) -> Job:
        """As ``Client.train``."""
        request = train_requests.create_job(
            name,
            on_top_of=on_top_of,
            init_from=init_from,
            gate=gate,
            compare_prompt=compare_prompt,
            compare_top_k=compare_top_k,
            recipe=recipe,
            metadata=metadata,
            idempotency_key=idempotency_key or uuid.uuid4().hex,
            options=settings,
        )
        # Read first: what is no text is refused before anything is sent.
        documents = None if compare_documents is None else blocking(read_documents, compare_documents)
        datasets = Datasets(self._transport)
        request.dataset_id = (datasets.upload(data, as_=as_)).id
        if validation is not None:
            request.validation_dataset_id = (datasets.upload(validation, as_=as_)).id
        if replay is not None:
            shipped = isinstance(replay, str) and replay == "default"
            request.settings.replay = "default" if shipped else (datasets.upload(replay)).id
        if documents is not None:
            request.compare_documents = (datasets.upload(documents)).id
        return Job(self._transport, responses.job(self._transport.unary(self._stub.CreateJob, request)))

    def list(self, *, states: Sequence[str] = (), name: str = "", limit: int | None = None) -> list[JobInfo]:
        """Jobs of the caller, newest first, ``limit`` at most; only those in ``states`` and for ``name`` if given."""
        wanted = train_requests.job_states(states)
        request = filled(training_pb2.ListJobsRequest(states=wanted), name=name)
        found = self._transport.items(self._stub.ListJobs, request, "jobs", limit)
        return [responses.job(message) for message in found]

    def get(self, job_id: str) -> Job:
        """The handle of a job."""
        request = filled(training_pb2.GetJobRequest(), job_id=job_id)
        return Job(self._transport, responses.job(self._transport.unary(self._stub.GetJob, request)))


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
        return latest(self).state

    @property
    def metrics(self) -> dict[str, float]:
        """Its metrics now (asks the server until the state is final)."""
        return latest(self).metrics

    def refresh(self) -> JobInfo:
        """Ask the server how the job stands."""
        if self.info.state not in SETTLED_STATES:
            request = filled(training_pb2.GetJobRequest(), job_id=self.id)
            self.info = responses.job(self._transport.unary(self._stub.GetJob, request))
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
            sleep(watch.retry_delay(failure))

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
        self.info = responses.job(self._transport.unary(method, request))
        return self.info
