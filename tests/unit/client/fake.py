"""A real gRPC server whose answers a test scripts."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from loramux.v1 import (
    adapters_pb2,
    adapters_pb2_grpc,
    common_pb2,
    inference_pb2,
    inference_pb2_grpc,
    server_pb2,
    server_pb2_grpc,
    training_pb2,
    training_pb2_grpc,
)

RUNNING, SUCCEEDED, FAILED = (
    training_pb2.JOB_STATE_RUNNING,
    training_pb2.JOB_STATE_SUCCEEDED,
    training_pb2.JOB_STATE_FAILED,
)


def refuse(context: grpc.ServicerContext, code: grpc.StatusCode, message: str, *details: Any) -> None:
    """End a call the way the server does: google.rpc.Status with details."""
    packed = []
    for detail in details:
        packed.append(any_pb2.Any())
        packed[-1].Pack(detail)
    context.abort_with_status(
        rpc_status.to_status(status_pb2.Status(code=code.value[0], message=message, details=packed))
    )


def step(sequence: int, number: int, total: int = 3, **metrics: float) -> training_pb2.JobEvent:
    return training_pb2.JobEvent(
        sequence=sequence,
        time=1.0 * sequence,
        type=training_pb2.JOB_EVENT_TYPE_STEP,
        step=number,
        total_steps=total,
        metrics=metrics or {"loss": 1.0 / number},
    )


def moved(sequence: int, state: training_pb2.JobState.ValueType, message: str = "") -> training_pb2.JobEvent:
    return training_pb2.JobEvent(
        sequence=sequence, type=training_pb2.JOB_EVENT_TYPE_STATE, state=state, message=message
    )


@dataclass
class Fake:
    """What the server was asked and what it answers. Handlers of a call may be replaced by name."""

    address: str = ""
    requests: list[tuple[str, Any]] = field(default_factory=list)
    metadata: list[tuple[str, str]] = field(default_factory=list)
    handlers: dict[str, Callable[[Any, grpc.ServicerContext], Any]] = field(default_factory=dict)
    job: training_pb2.Job = field(default_factory=lambda: training_pb2.Job(id="job-1", name="acme", state=RUNNING))
    watches: list[list[training_pb2.JobEvent | grpc.StatusCode]] = field(default_factory=list)
    """What each WatchJob call in turn sends; a status code ends that call with it."""
    profile: list[Any] = field(default_factory=list)
    """What ProfileEngine sends; a status code ends the call with it."""
    uploaded: dict[str, bytes] = field(default_factory=dict)
    cancelled: threading.Event = field(default_factory=threading.Event)
    health: health.HealthServicer = field(default_factory=health.HealthServicer)

    def last(self, call: str) -> Any:
        """The latest request of a call."""
        return next(request for name, request in reversed(self.requests) if name == call)

    def count(self, call: str) -> int:
        return sum(name == call for name, _ in self.requests)

    def take(self, call: str, request: Any, context: grpc.ServicerContext) -> Any:
        self.requests.append((call, request))
        self.metadata = [(key, value) for key, value in context.invocation_metadata()]
        handler = self.handlers.get(call)
        return handler(request, context) if handler else None


class Inference(inference_pb2_grpc.InferenceServiceServicer):
    def __init__(self, fake: Fake) -> None:
        self.fake = fake

    def GenerateOnce(self, request: Any, context: Any) -> Any:
        answer = self.fake.take("GenerateOnce", request, context)
        return answer or inference_pb2.GenerateResult(
            choices=[
                inference_pb2.Choice(
                    index=i,
                    text=f"answer {i}",
                    token_ids=[1, 2],
                    finish_reason=inference_pb2.FINISH_REASON_STOP,
                    logprobs=[
                        inference_pb2.TokenLogprob(
                            token_id=1,
                            logprob=-0.5,
                            token="a",
                            token_bytes=b"\xf0\x9f",
                            top=[inference_pb2.TopLogprob(token_id=1, logprob=-0.5, token="a", token_bytes=b"a")],
                        )
                    ],
                )
                for i in range(request.n or 1)
            ],
            usage=common_pb2.Usage(prompt_tokens=3, completion_tokens=2, total_tokens=5),
            adapters=[
                common_pb2.AppliedAdapter(name=e.adapter, version=1, digest="d", weight=e.weight or 1.0)
                for e in request.adapters
            ],
            request_id="r1",
        )

    def Generate(self, request: Any, context: Any) -> Iterator[Any]:
        context.add_callback(self.fake.cancelled.set)
        answer = self.fake.take("Generate", request, context)
        if answer is not None:
            yield from answer
            return
        applied = [common_pb2.AppliedAdapter(name="acme", version=2, digest="d", weight=0.5)]
        yield inference_pb2.GenerateResponse(text="Hel", token_ids=[1], request_id="r2", adapters=applied)
        yield inference_pb2.GenerateResponse(text="lo", token_ids=[2, 3])
        yield inference_pb2.GenerateResponse(
            finish_reason=inference_pb2.FINISH_REASON_LENGTH,
            usage=common_pb2.Usage(prompt_tokens=1, completion_tokens=3, cached_tokens=1),
            adapters=applied,
        )

    def Score(self, request: Any, context: Any) -> Any:
        self.fake.take("Score", request, context)
        return inference_pb2.ScoreResponse(
            token_ids=[5, 6],
            tokens=["a", "b"],
            logprobs=[-1.0, -0.5],
            greedy=[True, False],
            token_bytes=[b"a", b"b"],
        )

    def Embed(self, request: Any, context: Any) -> Any:
        self.fake.take("Embed", request, context)
        found = [inference_pb2.Embedding(values=[0.5, float(i)]) for i in range(len(request.input))]
        return inference_pb2.EmbedResponse(embeddings=found, usage=common_pb2.Usage(prompt_tokens=3, total_tokens=3))

    def Tokenize(self, request: Any, context: Any) -> Any:
        self.fake.take("Tokenize", request, context)
        return inference_pb2.TokenizeResponse(token_ids=[5, 6], tokens=["a", "b"], text="ab", token_bytes=[b"a", b"b"])


def version(name: str = "acme", number: int = 2) -> adapters_pb2.AdapterVersion:
    return adapters_pb2.AdapterVersion(
        name=name,
        version=number,
        digest="sha256:d",
        rank=8,
        alpha=16,
        state=adapters_pb2.ADAPTER_STATE_READY,
        tier=adapters_pb2.ADAPTER_TIER_DEVICE,
        layers=[15, 16, 17],
        size_bytes=2048,
        created_at=1.7e9,
        metrics={"validation_loss": 0.25},
        trained_on=[common_pb2.Stack(entries=[common_pb2.StackEntry(adapter="pine@1", weight=1.3)])],
    )


class AdapterRegistry(adapters_pb2_grpc.AdapterServiceServicer):
    def __init__(self, fake: Fake) -> None:
        self.fake = fake

    def ListAdapters(self, request: Any, context: Any) -> Any:
        self.fake.take("ListAdapters", request, context)
        names = ["acme", "birch", "cedar"]
        start = int(request.page_token or 0)
        page = [adapters_pb2.Adapter(name=n, current=version(n)) for n in names[start : start + 2]]
        return adapters_pb2.ListAdaptersResponse(
            adapters=page, next_page_token=str(start + 2) if start + 2 < len(names) else ""
        )

    def GetAdapter(self, request: Any, context: Any) -> Any:
        answer = self.fake.take("GetAdapter", request, context)
        return answer or adapters_pb2.Adapter(
            name=request.adapter, current=version(), versions=[version(), version(number=1)], aliases={"old": 1}
        )

    def UploadAdapter(self, requests: Any, context: Any) -> Any:
        header = next(requests).header
        self.fake.take("UploadAdapter", header, context)
        for message in requests:
            name = message.chunk.name
            self.fake.uploaded[name] = self.fake.uploaded.get(name, b"") + message.chunk.data
        for info in header.files:
            content = self.fake.uploaded.get(info.name, b"")
            assert (len(content), hashlib.sha256(content).hexdigest()) == (info.size, info.sha256)
        return version(header.name, 1)

    def DownloadAdapter(self, request: Any, context: Any) -> Iterator[Any]:
        answer = self.fake.take("DownloadAdapter", request, context)
        if answer is not None:
            yield from answer
            return
        files = {"adapter_config.json": b"{}", "empty.txt": b"", "adapter_model.safetensors": b"x" * 100}
        infos = [
            common_pb2.FileInfo(name=n, size=len(c), sha256=hashlib.sha256(c).hexdigest()) for n, c in files.items()
        ]
        yield adapters_pb2.DownloadAdapterResponse(
            header=adapters_pb2.DownloadAdapterHeader(version=version(), files=infos)
        )
        for name, content in files.items():
            for start in range(0, len(content), 60):
                chunk = common_pb2.FileChunk(name=name, data=content[start : start + 60])
                yield adapters_pb2.DownloadAdapterResponse(chunk=chunk)

    def DeleteAdapter(self, request: Any, context: Any) -> Any:
        self.fake.take("DeleteAdapter", request, context)
        return adapters_pb2.DeleteAdapterResponse(versions_deleted=2)

    def SetAlias(self, request: Any, context: Any) -> Any:
        answer = self.fake.take("SetAlias", request, context)
        return answer or adapters_pb2.Adapter(name=request.name, current=version(number=request.version))

    def ComposeAdapter(self, request: Any, context: Any) -> Any:
        answer = self.fake.take("ComposeAdapter", request, context)
        composed = adapters_pb2.Composition(
            method=request.method, stack=common_pb2.Stack(entries=request.adapters), error=0.125, rank=4
        )
        made = version(request.name, 1)
        made.composed.CopyFrom(composed)
        return answer or adapters_pb2.ComposeAdapterResponse(version=made)

    def PinAdapter(self, request: Any, context: Any) -> Any:
        self.fake.take("PinAdapter", request, context)
        return adapters_pb2.Adapter(name=request.adapter, current=version())

    def ShareAdapter(self, request: Any, context: Any) -> Any:
        self.fake.take("ShareAdapter", request, context)
        name = request.adapter.partition("@")[0]
        shared = version(name, 1)
        shared.shared = True
        return adapters_pb2.Adapter(name=name, current=shared, versions=[shared], shared=True)

    def UnshareAdapter(self, request: Any, context: Any) -> Any:
        self.fake.take("UnshareAdapter", request, context)
        return adapters_pb2.UnshareAdapterResponse(versions_unshared=2)

    def UnpinAdapter(self, request: Any, context: Any) -> Any:
        self.fake.take("UnpinAdapter", request, context)
        return adapters_pb2.Adapter(name=request.adapter, current=version())


class Training(training_pb2_grpc.TrainingServiceServicer):
    def __init__(self, fake: Fake) -> None:
        self.fake = fake

    def UploadDataset(self, requests: Any, context: Any) -> Any:
        header = next(requests).header
        self.fake.take("UploadDataset", header, context)
        content = b"".join(message.chunk for message in requests)
        assert (len(content), hashlib.sha256(content).hexdigest()) == (header.size, header.sha256)
        self.fake.uploaded[header.name] = content
        return training_pb2.Dataset(id=f"data-{header.name}", name=header.name, size_bytes=len(content))

    @staticmethod
    def _part(text: str, trained: bool) -> Any:
        return training_pb2.MarkedText(text=text, trained=trained)

    def ListDatasets(self, request: Any, context: Any) -> Any:
        answer = self.fake.take("ListDatasets", request, context)
        return answer or training_pb2.ListDatasetsResponse(datasets=[training_pb2.Dataset(id="ds-1", name="a.jsonl")])

    def DeleteDataset(self, request: Any, context: Any) -> Any:
        return self.fake.take("DeleteDataset", request, context) or training_pb2.DeleteDatasetResponse()

    def ValidateDataset(self, request: Any, context: Any) -> Any:
        self.fake.take("ValidateDataset", request, context)
        return training_pb2.ValidateDatasetResponse(
            problems=[training_pb2.DatasetProblem(line=3, field="messages", description="is empty")],
            problems_total=2,
            summary=training_pb2.DatasetSummary(
                rows=5,
                tokens=50,
                estimated_seconds=75,
                estimated_from="the speed of job j",
                too_long=1,
                warnings=["few"],
            ),
            rows=[
                training_pb2.MarkedRow(
                    line=request.show_from_line + i,
                    text=[self._part("Where?", False), self._part("Here.<end>", True)],
                    rejected=[self._part("Where?", False), self._part("\x1b[2J?", True)] if i else [],
                    tokens=9,
                )
                for i in range(request.show_rows)
            ],
        )

    def CreateJob(self, request: Any, context: Any) -> Any:
        self.fake.take("CreateJob", request, context)
        return self.fake.job

    def GetJob(self, request: Any, context: Any) -> Any:
        self.fake.take("GetJob", request, context)
        return self.fake.job

    def ListJobs(self, request: Any, context: Any) -> Any:
        answer = self.fake.take("ListJobs", request, context)
        return answer or training_pb2.ListJobsResponse(jobs=[self.fake.job])

    def _move(self, call: str, state: str, request: Any, context: Any) -> Any:
        self.fake.take(call, request, context)
        self.fake.job.state = training_pb2.JobState.Value(state)
        return self.fake.job

    def CancelJob(self, request: Any, context: Any) -> Any:
        return self._move("CancelJob", "JOB_STATE_CANCELLED", request, context)

    def PauseJob(self, request: Any, context: Any) -> Any:
        return self._move("PauseJob", "JOB_STATE_PAUSED", request, context)

    def ResumeJob(self, request: Any, context: Any) -> Any:
        return self._move("ResumeJob", "JOB_STATE_QUEUED", request, context)

    def WatchJob(self, request: Any, context: Any) -> Iterator[Any]:
        context.add_callback(self.fake.cancelled.set)
        self.fake.take("WatchJob", request, context)
        for item in self.fake.watches.pop(0):
            if isinstance(item, grpc.StatusCode):
                context.abort(item, "the script says so")
            yield item


class Server(server_pb2_grpc.ServerServiceServicer):
    def __init__(self, fake: Fake) -> None:
        self.fake = fake

    def GetServerInfo(self, request: Any, context: Any) -> Any:
        answer = self.fake.take("GetServerInfo", request, context)
        return answer or server_pb2.ServerInfo(
            version="9.9",
            state=server_pb2.SERVER_STATE_READY,
            base=server_pb2.BaseInfo(
                name="tiny", max_context=128, weight_bytes=32 << 20, weight_bytes_16bit=100 << 20, weights="unpacked"
            ),
            dtype="bfloat16",
            training_job_bytes=38 << 20,
            memory_bytes={"base": 1 << 20, "adapters": 1},
            limits=server_pb2.Limits(max_stack=8),
        )

    def GetStats(self, request: Any, context: Any) -> Any:
        answer = self.fake.take("GetStats", request, context)
        return answer or server_pb2.ServerStats(window_seconds=10, own=server_pb2.TenantActivity(tenant="acme"))

    def ListReplicas(self, request: Any, context: Any) -> Any:
        answer = self.fake.take("ListReplicas", request, context)
        replica = server_pb2.Replica(id="ab", state=server_pb2.REPLICA_STATE_DRAINING, node="n1", training_jobs=["j"])
        return answer or server_pb2.ListReplicasResponse(replicas=[replica])

    def DrainReplica(self, request: Any, context: Any) -> Any:
        return self.fake.take("DrainReplica", request, context) or server_pb2.DrainReplicaResponse()

    def ProfileEngine(self, request: Any, context: Any) -> Iterator[Any]:
        self.fake.take("ProfileEngine", request, context)
        for item in self.fake.profile:
            if isinstance(item, grpc.StatusCode):
                context.abort(item, "the script says so")
            yield item


def start(fake: Fake, credentials: grpc.ServerCredentials | None = None) -> grpc.Server:
    """Run ``fake`` on a free port, with TLS if there are ``credentials``."""
    server = grpc.server(futures.ThreadPoolExecutor(4))
    inference_pb2_grpc.add_InferenceServiceServicer_to_server(Inference(fake), server)
    adapters_pb2_grpc.add_AdapterServiceServicer_to_server(AdapterRegistry(fake), server)
    training_pb2_grpc.add_TrainingServiceServicer_to_server(Training(fake), server)
    server_pb2_grpc.add_ServerServiceServicer_to_server(Server(fake), server)
    health_pb2_grpc.add_HealthServicer_to_server(fake.health, server)
    fake.health.set("", health_pb2.HealthCheckResponse.SERVING)
    if credentials is None:
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        port = server.add_secure_port("127.0.0.1:0", credentials)
    fake.address = f"127.0.0.1:{port}"
    server.start()
    return server


def details() -> tuple[Any, ...]:
    """One of each detail that the client reads."""
    retry = error_details_pb2.RetryInfo()
    retry.retry_delay.FromMilliseconds(1500)
    violation = error_details_pb2.BadRequest.FieldViolation(field="adapters[1].weight", description="is nan")
    return (
        error_details_pb2.ErrorInfo(reason="BAD_STACK", domain="loramux"),
        error_details_pb2.BadRequest(field_violations=[violation]),
        retry,
    )
