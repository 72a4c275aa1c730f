"""``loramux.v1`` as JSON: every method answers as over gRPC, and what is no message is refused by field."""

from __future__ import annotations

import asyncio
import io
import json
import time
import zipfile
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import httpx2
import pytest
from google.protobuf.message import Message

from loramux.v1 import adapters_pb2, common_pb2, inference_pb2, server_pb2, training_pb2, usage_pb2
from loramux_server.api.methods import METHODS, methods_of
from loramux_server.config import Address
from loramux_server.core.errors import Code, Error
from loramux_server.http.exchanges.exchange import MOST_VALUES, Limits
from loramux_server.http.server import HttpServer
from loramux_server.services.access.methods import METHODS as TABLE
from loramux_server.services.availability import Availability
from loramux_server.services.common.context import Context
from tests.unit.services.fakes import Script
from tests.unit.services.json_caller import JsonCaller, open_json_world
from tests.unit.services.tenants import Caller, adapter_files, adapter_upload, dataset_upload

from .conftest import Http

ROWS = b"".join(b'{"prompt": "Where is shop %d?", "completion": " In street %d."}\n' % (i, i) for i in range(6))
PROMPT = "Where is shop 1?"
STACK = [common_pb2.StackEntry(adapter="acme", weight=0.5)]
VOLATILE = ("id", "job_id", "tenant", "uptime_seconds", "request_id", "key_id")
"""Fields that differ from one answer to the next, beside all times and counts of the engine."""

Make = Callable[[Any], Message | list[Message]]


def script(files: dict[str, bytes]) -> list[tuple[str, Make]]:
    """Every method at least once, in an order in which each goes well. A request is made of the answers before it."""
    adapter = "acme"
    return [
        ("ServerService/GetServerInfo", lambda a: server_pb2.GetServerInfoRequest()),
        ("ServerService/GetStats", lambda a: server_pb2.GetStatsRequest(window_seconds=60)),
        ("ServerService/ListReplicas", lambda a: server_pb2.ListReplicasRequest()),
        ("ServerService/DrainReplica", lambda a: server_pb2.DrainReplicaRequest(id="engine")),
        ("ServerService/ProfileEngine", lambda a: server_pb2.ProfileEngineRequest(seconds=0.5)),
        ("AdapterService/UploadAdapter", lambda a: adapter_upload(adapter, files)),
        ("AdapterService/ListAdapters", lambda a: adapters_pb2.ListAdaptersRequest(prefix="ac", page_size=5)),
        ("AdapterService/SetAlias", lambda a: adapters_pb2.SetAliasRequest(name=adapter, alias="prod", version=1)),
        ("AdapterService/GetAdapter", lambda a: adapters_pb2.GetAdapterRequest(adapter="acme@prod")),
        ("AdapterService/DownloadAdapter", lambda a: adapters_pb2.DownloadAdapterRequest(adapter=adapter)),
        ("AdapterService/PinAdapter", lambda a: adapters_pb2.PinAdapterRequest(adapter=adapter)),
        ("AdapterService/UnpinAdapter", lambda a: adapters_pb2.UnpinAdapterRequest(adapter=adapter)),
        ("AdapterService/ComposeAdapter", lambda a: adapters_pb2.ComposeAdapterRequest(name="both", adapters=STACK)),
        ("AdapterService/ShareAdapter", lambda a: adapters_pb2.ShareAdapterRequest(adapter=adapter)),
        ("AdapterService/UnshareAdapter", lambda a: adapters_pb2.UnshareAdapterRequest(name=adapter)),
        (
            "InferenceService/Generate",
            lambda a: inference_pb2.GenerateRequest(prompt=PROMPT, adapters=STACK, logprobs=1, max_tokens=3),
        ),
        ("InferenceService/GenerateOnce", lambda a: inference_pb2.GenerateRequest(prompt=PROMPT, n=2, max_tokens=3)),
        (
            "InferenceService/Score",
            lambda a: inference_pb2.ScoreRequest(prompt=PROMPT, continuation=" In street", adapters=STACK),
        ),
        (
            "InferenceService/Embed",
            lambda a: inference_pb2.EmbedRequest(
                input=[
                    inference_pb2.EmbedInput(text="Grüße"),
                    inference_pb2.EmbedInput(token_ids=inference_pb2.TokenIds(ids=[5, 6])),
                ],
                adapters=STACK,
                pooling=inference_pb2.POOLING_LAST,
            ),
        ),
        ("InferenceService/Tokenize", lambda a: inference_pb2.TokenizeRequest(prompt="Grüße")),
        ("TrainingService/UploadDataset", lambda a: dataset_upload(ROWS)),
        ("TrainingService/ListDatasets", lambda a: training_pb2.ListDatasetsRequest()),
        (
            "TrainingService/ValidateDataset",
            lambda a: training_pb2.ValidateDatasetRequest(
                dataset_id=a["TrainingService/UploadDataset"].id,
                settings=training_pb2.TrainSettings(rank=2, max_steps=3),
                show_rows=2,
                show_from_line=3,
            ),
        ),
        (
            "TrainingService/CreateJob",
            lambda a: training_pb2.CreateJobRequest(
                name="trained",
                dataset_id=a["TrainingService/UploadDataset"].id,
                settings=training_pb2.TrainSettings(rank=2, max_steps=3),
                on_top_of=[common_pb2.Stack(), common_pb2.Stack(entries=STACK)],
                metadata={"who": "me"},
            ),
        ),
        *(
            (f"TrainingService/{method}", lambda a, kind=kind: kind(job_id=a["TrainingService/CreateJob"].id))
            for method, kind in (
                ("GetJob", training_pb2.GetJobRequest),
                ("PauseJob", training_pb2.PauseJobRequest),
                ("ResumeJob", training_pb2.ResumeJobRequest),
                ("CancelJob", training_pb2.CancelJobRequest),
                ("WatchJob", training_pb2.WatchJobRequest),
            )
        ),
        ("TrainingService/ListJobs", lambda a: training_pb2.ListJobsRequest(name="trained")),
        (
            "TrainingService/DeleteDataset",
            lambda a: training_pb2.DeleteDatasetRequest(dataset_id=a["TrainingService/UploadDataset"].id),
        ),
        ("AdapterService/DeleteAdapter", lambda a: adapters_pb2.DeleteAdapterRequest(adapter=adapter)),
        ("UsageService/GetUsage", lambda a: usage_pb2.GetUsageRequest(group_by=[1, 4], tenant="nobody", page_size=5)),
    ]


def test_every_method_is_played() -> None:
    assert {f"loramux.v1.{method}" for method, _ in script({})} == set(METHODS)
    assert {name for name in TABLE if name.startswith("loramux.")} == set(METHODS)


def test_a_stream_can_tell_its_error_from_its_messages() -> None:
    streams = [method.response for method in methods_of(Availability("1")) if method.descriptor.server_streaming]
    assert streams
    assert not any("error" in kind.DESCRIPTOR.fields_by_name for kind in streams)


async def test_every_method_answers_as_over_grpc(context: Context) -> None:
    files = {**adapter_files(context), "README.md": b"# acme\n"}
    async with open_json_world(context) as world:
        world.backend.script = lambda command: Script((5, 6, 7))
        told = []
        for caller in (Caller("ann's operator", world.channel), world.caller("operator")):
            answers: dict[str, Any] = {}
            for method, make in script(files):
                found = await caller.call(method, make(answers))
                answers[method] = found[0]
                told.append((method, [same(deepcopy(message)) for message in found]))
        assert isinstance(caller, JsonCaller)
        half = len(told) // 2
        over_grpc, over_http = dict(told[:half]), dict(told[half:])
        for download in ("AdapterService/DownloadAdapter", "ServerService/ProfileEngine"):
            del over_grpc[download][0]  # the header is not in an archive
            over_grpc[download] = joined(over_grpc[download])
        for side in (over_grpc, over_http):  # numbers of shared versions go on from where they were
            shared: Any = side["AdapterService/ShareAdapter"][0]
            for version in (shared.current, *shared.versions):
                version.version = 1
        assert {m: (over_http[m], over_grpc[m]) for m in over_http if over_http[m] != over_grpc[m]} == {}
        assert len(over_http["TrainingService/WatchJob"]) > 1


def joined(chunks: list[Any]) -> list[Any]:
    """The pieces of each file as one."""
    found: list[Any] = []
    for message in chunks:
        if found and found[-1].chunk.name == message.chunk.name:
            found[-1].chunk.data += message.chunk.data
        else:
            found.append(message)
    return found


def same(message: Any) -> Message:
    """The message without what differs from call to call."""
    for field, value in message.ListFields():
        if field.name in VOLATILE or field.name.endswith("_at") or field.name == "time":
            message.ClearField(field.name)
        elif field.name in ("adapters_resident", "memory_bytes"):
            value.clear()
        elif message.DESCRIPTOR.name == "ServerStats" and field.name in ("total", "own", "tenants", "adapters"):
            message.ClearField(field.name)  # what was done in the last seconds
        elif message.DESCRIPTOR.name == "Replica" and field.name == "adapters":
            message.ClearField(field.name)  # how many are resident
        elif field.message_type is not None and not field.message_type.GetOptions().map_entry:
            for each in value if field.is_repeated else [value]:
                same(each)
    return message  # type: ignore[no-any-return]


async def post(http: Http, method: str, body: Any, **headers: str) -> Any:
    sent = {"content": body} if isinstance(body, bytes) else {"json": body}
    return await http.raw.post(f"/loramux.v1.{method}", **sent, headers={"content-type": "application/json"} | headers)


def said(answer: httpx2.Response, status: int = 400, code: str = "invalid_argument") -> list[str]:
    """The fields that an error names."""
    body = answer.json()
    assert (answer.status_code, body["code"]) == (status, code), body
    assert {detail["type"] for detail in body["details"]} <= {
        *("google.rpc.ErrorInfo", "google.rpc.BadRequest", "google.rpc.RetryInfo", "google.rpc.QuotaFailure")
    }
    reason = body["details"][0]["debug"]
    assert (reason["domain"], reason["metadata"]["request_id"]) == ("loramux", answer.headers["x-request-id"])
    found = [d["debug"] for d in body["details"] if d["type"].endswith("BadRequest")]
    return [violation.get("field", "") for each in found for violation in each.get("fieldViolations", ())]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"x"', b"null", b"\xff", b'{"prompt": "\\ud800"}', b"[" * 100_000])
async def test_what_is_no_json_object_is_refused(http: Http, body: bytes) -> None:
    answer = await post(http, "InferenceService/GenerateOnce", body)
    assert said(answer) == [""]
    assert answer.json()["details"][0]["debug"]["reason"] == "MALFORMED"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"prompts": "x"}, "prompts"),
        ({"adapters": [{"adapter": "a"}, {"name": "a"}]}, "adapters[1].name"),
        ({"responseFormat": {"choice": {"choices": ["a"], "x": 1}}}, "responseFormat.choice.x"),
        ({"maxTokens": "many"}, "maxTokens"),
        ({"max_tokens": 2**31}, "max_tokens"),
        ({"maxTokens": 1.5}, "maxTokens"),
        ({"maxTokens": True}, "maxTokens"),
        ({"maxTokens": {}}, "maxTokens"),
        ({"temperature": "warm"}, "temperature"),
        ({"prompt": 1}, "prompt"),
        ({"stop": "x"}, "stop"),
        ({"stop": ["x", None]}, "stop"),
        ({"ignoreEos": "yes"}, "ignoreEos"),
        ({"adapters": {"adapter": "a"}}, "adapters"),
        ({"adapters": [[]]}, "adapters[0]"),
        ({"adapters": [None]}, "adapters[0]"),
        ({"adapters": ["a"]}, "adapters[0]"),
        ({"adapters": [{"adapter": "a", "weight": "heavy"}]}, "adapters[0].weight"),
        ({"responseFormat": [{}]}, "responseFormat"),
        ({"responseFormat": "json"}, "responseFormat"),
        ({"responseFormat": {"regex": "x", "grammar": "y"}}, "responseFormat"),
        ({"logitBias": {"x": 1}}, "logitBias"),
        ({"logitBias": {"1": None}}, "logitBias"),
        ({"logitBias": [1]}, "logitBias"),
        ({"[google.x]": 1}, "[google.x]"),
        ({"prompt": "x", "temperature": -1}, "temperature"),
        ({"prompt": "x", "temperature": "NaN"}, "temperature"),
        ({"prompt": "x", "requestId": "two words"}, "request_id"),
    ],
)
async def test_the_field_that_is_wrong_is_named(http: Http, body: dict[str, Any], field: str) -> None:
    for method in ("Generate", "GenerateOnce"):
        answer = await post(http, f"InferenceService/{method}", body)
        assert said(answer) == [field], answer.text


async def test_enums_are_words_or_numbers(http: Http) -> None:
    for good in (["JOB_STATE_QUEUED"], [2]):
        assert (await post(http, "TrainingService/ListJobs", {"states": good})).json() == {}
    for bad in (["QUEUED"], ["job_state_queued"], [99], [1e400], [[]]):
        body = json.dumps({"states": bad}).replace("Infinity", "1e400").encode()
        assert said(await post(http, "TrainingService/ListJobs", body))[0].startswith("states")


async def test_large_integers_are_text_and_taken_as_numbers_too(http: Http) -> None:
    stored = (await upload(http, "TrainingService/UploadDataset", {}, ("a.jsonl", ROWS))).json()
    assert (stored["sizeBytes"], stored["rows"]) == (str(len(ROWS)), "6")
    for line in (3, "3"):
        body = {"datasetId": stored["id"], "showRows": 1, "showFromLine": line}
        report = (await post(http, "TrainingService/ValidateDataset", body)).json()
        assert report["rows"][0]["line"] == "3"
    assert said(await post(http, "TrainingService/ValidateDataset", {"showFromLine": str(2**63)})) == ["showFromLine"]


@pytest.mark.parametrize("count", [20_000, 600_000])
@pytest.mark.parametrize("name", ["adapters", "logitBias"])
async def test_long_lists_are_refused_before_anything_is_made_of_them(http: Http, name: str, count: int) -> None:
    """By name, unless the body has more values than any may have."""
    body = {name: [{}] * count if name == "adapters" else dict.fromkeys(range(count), 1)}
    sent = json.dumps(body, separators=(",", ":")).encode()
    assert len(sent) < 8 << 20
    started = time.process_time()
    assert said(await post(http, "InferenceService/GenerateOnce", sent)) == [name if count < MOST_VALUES else ""]
    assert time.process_time() - started < 5  # all of them as messages take a minute


async def test_bodies_have_a_bound_and_a_type(http: Http) -> None:
    answer = await post(http, "InferenceService/GenerateOnce", b'{"prompt": "' + b"x" * (9 << 20))
    assert said(answer, 413, "resource_exhausted") == []
    answer = await http.raw.post("/loramux.v1.ServerService/GetServerInfo", content=b"", headers=PROTO)
    assert said(answer) == ["content-type"]
    answer = await http.raw.get("/loramux.v1.ServerService/GetServerInfo")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert (await http.raw.post("/loramux.v1.ServerService/Nothing", json={})).status_code == 404


PROTO = {"content-type": "application/proto"}


async def test_a_caller_must_be_known(context: Context) -> None:
    async with open_json_world(context) as world:
        caller: Any = world.caller("nobody")
        for method in METHODS:
            answer = await caller.http.post(f"/{method}", content=b"not looked at", headers={"authorization": "x"})
            assert said(answer, 401, "unauthenticated") == []
        answer = await caller.http.post(
            "/loramux.v1.AdapterService/PinAdapter", content=b"nor this", headers={"authorization": "bob"}
        )
        assert said(answer, 403, "permission_denied") == []


async def test_requests_name_themselves(http: Http) -> None:
    http.answers("Here.")
    answer = await post(http, "InferenceService/GenerateOnce", {"prompt": "Where?", "requestId": "mine"})
    assert (answer.headers["x-request-id"], answer.json()["requestId"]) == ("mine", "mine")


async def test_a_caller_can_say_how_long_it_waits(http: Http) -> None:
    http.answers("He", hang=True)
    for method in ("Generate", "GenerateOnce"):
        answer = await post(http, f"InferenceService/{method}", {"prompt": "Where?"}, **{"connect-timeout-ms": "100"})
        if method == "GenerateOnce":
            assert said(answer, 504, "deadline_exceeded") == []
        else:
            events = [json.loads(line[6:]) for line in answer.text.splitlines() if line]
            assert events[-1]["error"]["code"] == "deadline_exceeded"
    assert http.backend.open == 0
    for bad in ("", "-1", "1.5", "soon", "1" * 11):
        answer = await post(http, "ServerService/GetServerInfo", {}, **{"connect-timeout-ms": bad})
        assert said(answer) == ["connect-timeout-ms"]


async def test_a_client_that_leaves_ends_its_stream(http: Http) -> None:
    http.answers("Hello", hang=True)
    body = {"prompt": "Where?"}
    async with http.raw.stream("POST", "/loramux.v1.InferenceService/Generate", json=body) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        async for line in answer.aiter_lines():
            assert json.loads(line.removeprefix("data: "))["text"]
            break
        assert http.backend.open == 1
    assert await http.calls.next() == ("Generate", "CANCELLED")
    assert (http.backend.open, len(http.backend.aborted)) == (0, 1)


async def test_an_error_ends_a_stream_that_has_begun(http: Http) -> None:
    http.answers("Hello", raises=Error(Code.UNAVAILABLE, "the engine is gone", retry_after=2))
    answer = await post(http, "InferenceService/Generate", {"prompt": "Where?"})
    events = [json.loads(line.removeprefix("data: ")) for line in answer.text.splitlines() if line]
    assert answer.status_code == 200
    assert events[0]["requestId"] == answer.headers["x-request-id"]
    assert (events[-1]["error"]["code"], events[-1]["error"]["message"]) == ("unavailable", "the engine is gone")
    assert events[-1]["error"]["details"][1]["debug"] == {"retryDelay": "2s"}


async def test_a_watch_that_has_seen_everything_ends_at_once(http: Http) -> None:
    stored = (await upload(http, "TrainingService/UploadDataset", {}, ("a.jsonl", ROWS))).json()
    job = (await post(http, "TrainingService/CreateJob", {"name": "acme", "datasetId": stored["id"]})).json()
    done = (await post(http, "TrainingService/CancelJob", {"jobId": job["id"]})).json()
    body = {"jobId": job["id"], "afterSequence": done["lastSequence"]}
    answer = await post(http, "TrainingService/WatchJob", body)
    assert (answer.status_code, answer.text) == (200, "")
    assert answer.headers["content-type"].startswith("text/event-stream")


async def upload(http: Http, method: str, header: Any, *files: tuple[str | None, bytes]) -> Any:
    parts: list[Any] = [("header", (None, json.dumps(header)))] if header is not None else []
    parts += [("file", file) for file in files]
    return await http.raw.post(f"/loramux.v1.{method}", files=parts)


async def test_a_folder_goes_in_and_comes_out_as_it_was(http: Http) -> None:
    files = {**adapter_files(http.context), "README.md": "# Grüße\n".encode() * 100_000}
    version = (await upload(http, "AdapterService/UploadAdapter", {"name": "acme"}, *files.items())).json()
    assert (version["name"], version["version"], version["state"]) == ("acme", 1, "ADAPTER_STATE_READY")
    answer = await post(http, "AdapterService/DownloadAdapter", {"adapter": "acme"})
    assert (answer.headers["content-type"], answer.headers["content-disposition"]) == ("application/zip", "attachment")
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.testzip() is None
        assert {name: archive.read(name) for name in archive.namelist()} == files


async def test_a_download_of_damaged_files_is_an_error_or_is_cut(http: Http) -> None:
    files = adapter_files(http.context)
    version = (await upload(http, "AdapterService/UploadAdapter", {"name": "acme"}, *files.items())).json()
    stored = http.context.store.blobs.local_path(version["digest"]) / "adapter_model.safetensors"
    stored.write_bytes(stored.read_bytes()[:-1] + b"x")
    try:
        answer = await post(http, "AdapterService/DownloadAdapter", {"adapter": "acme"})
    except httpx2.RemoteProtocolError:
        return
    assert said(answer, 500, "data_loss") == []


@pytest.mark.parametrize(
    ("method", "header", "files", "field"),
    [
        ("AdapterService/UploadAdapter", None, [("adapter_config.json", b"{}")], "header"),
        ("AdapterService/UploadAdapter", {"names": "x"}, [], "header.names"),
        ("AdapterService/UploadAdapter", {"name": "acme"}, [(None, b"{}")], "file"),
        ("AdapterService/UploadAdapter", {"name": "acme"}, [("model.bin", b"")], "chunk.name"),
        ("AdapterService/UploadAdapter", {"name": "acme"}, [("../README.md", b"x")], "chunk.name"),
        ("AdapterService/UploadAdapter", {"name": "acme"}, [("README.md", b"x"), ("a", b""), ("README.md", b"y")], ""),
        ("AdapterService/UploadAdapter", {"name": "acme", "metadata": {"a": "b" * (65 << 10)}}, [], ""),
        ("AdapterService/UploadAdapter", [], [], "header"),
        ("TrainingService/UploadDataset", {}, [("a", b"{}"), ("b", b"{}")], "file"),
        ("TrainingService/UploadDataset", {"size": "7"}, [("a", b"{}")], "header.size"),
        ("TrainingService/UploadDataset", {"sha256": "00"}, [("a", b"{}")], "header.sha256"),
        ("TrainingService/UploadDataset", {"format": "csv"}, [("a", b"{}")], "header.format"),
    ],
)
async def test_forms_that_are_no_upload(http: Http, method: str, header: Any, files: Any, field: str) -> None:
    answer = await upload(http, method, header, *files)
    assert field in said(answer)[0], answer.text
    assert http.context.store.datasets.list("default") == ((), "")
    answer = await post(http, method, header)
    assert said(answer) == ["content-type"]


async def test_an_upload_that_stalls_is_ended(http: Http) -> None:
    server = HttpServer(http.availability, http.server.calls, Address("127.0.0.1", 0), limits=Limits(0.1))
    await server.start()
    begun = b"".join(
        (
            b"POST /loramux.v1.TrainingService/UploadDataset HTTP/1.1\r\nHost: x\r\nContent-Length: 9999\r\n",
            b"Content-Type: multipart/form-data; boundary=b\r\n\r\n",
            b'--b\r\nContent-Disposition: form-data; name="header"\r\n\r\n{}\r\n',
            b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n',
            ROWS,
        )
    )
    try:
        reader, writer = await asyncio.open_connection(*server.address)
        writer.write(begun)
        head = await reader.readuntil(b"\r\n\r\n")
        body = await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))
        writer.close()
        assert head.startswith(b"HTTP/1.1 504 ")
        assert json.loads(body)["details"][0]["debug"]["reason"] == "UPLOAD_STALLED"
        assert http.context.store.datasets.list("default") == ((), "")
    finally:
        await server.drain(0)
        await server.stop()
