"""What is another tenant's, or not on the key's list, answers as what does not exist: every method, through a door."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, fields, replace
from typing import Any, TypeAlias

import grpc
import pytest
from google.protobuf.message import Message
from google.rpc import status_pb2
from prometheus_client import generate_latest

from loramux.v1 import adapters_pb2, common_pb2, inference_pb2, server_pb2, training_pb2, usage_pb2
from loramux_server.api.methods import METHODS
from loramux_server.rpc.interceptor import DETAILS_KEY
from loramux_server.services.common.context import Context
from loramux_server.store.paging import make_token
from loramux_server.telemetry.activity import ActivityRecorder
from tests.examples import few
from tests.unit.telemetry.test_activity import Clock

from .fakes import Script
from .json_caller import JsonRefused, open_json_world
from .tenants import Caller, World, adapter_files, adapter_upload, open_world

Request: TypeAlias = Message | list[Message]
Worlds: TypeAlias = Callable[[Context], AbstractAsyncContextManager[World]]


@pytest.fixture(params=[open_world, open_json_world], ids=["gRPC", "HTTP"])
def worlds(request: pytest.FixtureRequest) -> Worlds:
    """Opens a server and callers who use one of its doors."""
    found: Worlds = request.param
    return found


@dataclass(frozen=True)
class Objects:
    """What a request names."""

    adapter: str
    dataset: str
    job: str
    unused_dataset: str
    """One that no job has."""


ABSENT = Objects("nobodys", f"ds-{'0' * 16}", f"job-{'0' * 20}", f"ds-{'0' * 15}1")
ROWS = [{"prompt": f"Where is shop {i}?", "completion": f" In street {i}."} for i in range(4)]
PROMPT = "Where is shop 1?"


def jsonl(rows: list[dict[str, object]]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def _stack(ref: str) -> list[common_pb2.StackEntry]:
    return [common_pb2.StackEntry(adapter=ref)]


def _generate(ref: str) -> Message:
    return inference_pb2.GenerateRequest(prompt=PROMPT, adapters=_stack(ref), max_tokens=2)


def _validate(dataset: str, **more: object) -> Message:
    return training_pb2.ValidateDatasetRequest(dataset_id=dataset, **more)  # type: ignore[arg-type]


def _job(dataset: str, **more: object) -> Message:
    return training_pb2.CreateJobRequest(**{"name": "mine", "dataset_id": dataset, **more})  # type: ignore[arg-type]


@dataclass(frozen=True)
class Case:
    """A request that names an object of another's. ``own`` is a dataset of the caller's."""

    method: str
    make: Callable[[Objects, str], Request]


CASES = {
    "generate": Case("InferenceService/Generate", lambda o, own: _generate(o.adapter)),
    "generate with a version": Case("InferenceService/Generate", lambda o, own: _generate(f"{o.adapter}@1")),
    "generate with an alias": Case("InferenceService/GenerateOnce", lambda o, own: _generate(f"{o.adapter}@canary")),
    "generate once": Case("InferenceService/GenerateOnce", lambda o, own: _generate(o.adapter)),
    "score": Case(
        "InferenceService/Score",
        lambda o, own: inference_pb2.ScoreRequest(prompt=PROMPT, continuation=" In", adapters=_stack(o.adapter)),
    ),
    "embed": Case(
        "InferenceService/Embed",
        lambda o, own: inference_pb2.EmbedRequest(
            input=[inference_pb2.EmbedInput(text=PROMPT)], adapters=_stack(o.adapter)
        ),
    ),
    "get": Case("AdapterService/GetAdapter", lambda o, own: adapters_pb2.GetAdapterRequest(adapter=o.adapter)),
    "get a version": Case(
        "AdapterService/GetAdapter", lambda o, own: adapters_pb2.GetAdapterRequest(adapter=f"{o.adapter}@1")
    ),
    "get an alias": Case(
        "AdapterService/GetAdapter", lambda o, own: adapters_pb2.GetAdapterRequest(adapter=f"{o.adapter}@canary")
    ),
    "download": Case(
        "AdapterService/DownloadAdapter", lambda o, own: adapters_pb2.DownloadAdapterRequest(adapter=o.adapter)
    ),
    "promote": Case("AdapterService/SetAlias", lambda o, own: adapters_pb2.SetAliasRequest(name=o.adapter, version=1)),
    "alias": Case(
        "AdapterService/SetAlias",
        lambda o, own: adapters_pb2.SetAliasRequest(name=o.adapter, version=1, alias="canary"),
    ),
    "pin": Case("AdapterService/PinAdapter", lambda o, own: adapters_pb2.PinAdapterRequest(adapter=o.adapter)),
    "unpin": Case("AdapterService/UnpinAdapter", lambda o, own: adapters_pb2.UnpinAdapterRequest(adapter=o.adapter)),
    "share": Case("AdapterService/ShareAdapter", lambda o, own: adapters_pb2.ShareAdapterRequest(adapter=o.adapter)),
    "validate": Case("TrainingService/ValidateDataset", lambda o, own: _validate(o.dataset)),
    "validate held-out": Case(
        "TrainingService/ValidateDataset", lambda o, own: _validate(own, validation_dataset_id=o.dataset)
    ),
    "validate replayed": Case(
        "TrainingService/ValidateDataset",
        lambda o, own: _validate(own, settings=training_pb2.TrainSettings(replay=o.dataset)),
    ),
    "train": Case("TrainingService/CreateJob", lambda o, own: _job(o.dataset)),
    "train, held-out": Case("TrainingService/CreateJob", lambda o, own: _job(own, validation_dataset_id=o.dataset)),
    "train, replayed": Case(
        "TrainingService/CreateJob",
        lambda o, own: _job(own, settings=training_pb2.TrainSettings(replay=o.dataset, replay_rows=1)),
    ),
    "train on top of": Case(
        "TrainingService/CreateJob",
        lambda o, own: _job(own, on_top_of=[common_pb2.Stack(entries=_stack(o.adapter))]),
    ),
    "train from": Case("TrainingService/CreateJob", lambda o, own: _job(own, init_from=o.adapter)),
    "train from a version": Case("TrainingService/CreateJob", lambda o, own: _job(own, init_from=f"{o.adapter}@1")),
    "job": Case("TrainingService/GetJob", lambda o, own: training_pb2.GetJobRequest(job_id=o.job)),
    "watch": Case("TrainingService/WatchJob", lambda o, own: training_pb2.WatchJobRequest(job_id=o.job)),
    "pause": Case("TrainingService/PauseJob", lambda o, own: training_pb2.PauseJobRequest(job_id=o.job)),
    "resume": Case("TrainingService/ResumeJob", lambda o, own: training_pb2.ResumeJobRequest(job_id=o.job)),
    "cancel": Case("TrainingService/CancelJob", lambda o, own: training_pb2.CancelJobRequest(job_id=o.job)),
    "delete a dataset": Case(
        "TrainingService/DeleteDataset", lambda o, own: training_pb2.DeleteDatasetRequest(dataset_id=o.unused_dataset)
    ),
    "merge": Case(
        "AdapterService/ComposeAdapter",
        lambda o, own: adapters_pb2.ComposeAdapterRequest(name="mine", adapters=_stack(o.adapter)),
    ),
    "remove an alias": Case(
        "AdapterService/SetAlias",
        lambda o, own: adapters_pb2.SetAliasRequest(name=o.adapter, version=0, alias="canary"),
    ),
    "unshare": Case("AdapterService/UnshareAdapter", lambda o, own: adapters_pb2.UnshareAdapterRequest(name=o.adapter)),
    "delete": Case("AdapterService/DeleteAdapter", lambda o, own: adapters_pb2.DeleteAdapterRequest(adapter=o.adapter)),
}
"""The last ones change what they name, when its owner asks."""

OPERATORS = {"pin", "unpin", "share", "unshare"}
"""Those that need the scope admin."""

ELSEWHERE = {
    "InferenceService/Tokenize",  # names nothing that has an owner
    "AdapterService/ListAdapters",
    "AdapterService/UploadAdapter",
    "TrainingService/UploadDataset",
    "TrainingService/ListDatasets",
    "TrainingService/ListJobs",
    "ServerService/GetServerInfo",
    "ServerService/GetStats",
    "UsageService/GetUsage",
    "ServerService/ListReplicas",  # for operators alone: test_replicas.py
    "ServerService/DrainReplica",
    "ServerService/ProfileEngine",  # for operators alone: test_profiles.py
}
"""Methods that name no object which must be there; the tests below look at what they tell."""


def test_every_method_is_looked_at() -> None:
    covered = {case.method for case in CASES.values()} | ELSEWHERE
    assert covered == {method.removeprefix("loramux.v1.") for method in METHODS}


async def make_objects(owner: Caller, context: Context, name: str) -> Objects:
    """An adapter with an alias, a dataset and a job for the adapter's name."""
    await owner.upload(name, adapter_files(context, b=len(name)))
    alias = adapters_pb2.SetAliasRequest(name=name, version=1, alias="canary")
    await owner.one("AdapterService/SetAlias", alias)
    dataset = (await owner.dataset(jsonl(ROWS))).id
    job = await owner.one("TrainingService/CreateJob", _job(dataset, name=name, idempotency_key=f"once {name}"))
    unused = (await owner.dataset(jsonl([{**ROWS[0], "completion": f" For {name}."}]))).id
    return Objects(name, dataset, job.id, unused)


async def answer_to(caller: Caller, case: Case, objects: Objects, own: str) -> tuple[object, ...]:
    """How a call ends: its code, words and details as bytes, each name that was asked for replaced by its kind."""
    try:
        await caller.call(case.method, case.make(objects, own), first=1)
    except (grpc.aio.AioRpcError, JsonRefused) as error:
        code, *said = _said(error)
        for field in fields(objects):
            said = [text.replace(getattr(objects, field.name), f"<{field.name}>") for text in said]
        return (code, *said)
    return (grpc.StatusCode.OK,)


def _said(error: grpc.aio.AioRpcError | JsonRefused) -> tuple[Any, ...]:
    """All that an error tells: its code, its words, its details, and what travels beside them."""
    if isinstance(error, JsonRefused):
        beside = f"{error.http} {error.headers}"
        return grpc.StatusCode[error.code], error.body["message"], str(error.status()), beside
    trailing = {str(key): value for key, value in error.trailing_metadata() or ()}
    status = status_pb2.Status.FromString(bytes(trailing.pop(DETAILS_KEY)))
    return error.code(), str(error.details()), str(status), str(sorted(trailing.items()))


@pytest.mark.parametrize("looker", few(["bob", "ann's narrow key", "operator"]))
async def test_what_is_not_for_the_caller_answers_as_what_does_not_exist(
    worlds: Worlds, context: Context, looker: str
) -> None:
    """Code, words and details are compared as they cross the wire. Its owner's same call goes well."""
    async with worlds(context) as world:
        ann, other = world.caller("ann"), world.caller(looker)
        theirs = await make_objects(ann, context, "anns")
        own = (await other.dataset(jsonl(ROWS[:3]))).id
        answers = {}
        for name, case in CASES.items():
            if looker == "ann's narrow key" and _named_by(case) & {"dataset", "unused_dataset"}:
                continue  # datasets are the tenant's, whatever the key
            answers[name] = (
                await answer_to(other, case, theirs, own),
                await answer_to(other, case, ABSENT, own),
            )
        assert {name: pair for name, pair in answers.items() if pair[0] != pair[1]} == {}
        refused = set() if looker == "operator" else OPERATORS
        codes = {name: pair[0][0] for name, pair in answers.items()}
        assert codes == {
            name: grpc.StatusCode.PERMISSION_DENIED if name in refused else grpc.StatusCode.NOT_FOUND
            for name in answers
        }
        owner = world.caller("ann's operator")
        owned = (await owner.dataset(jsonl(ROWS[:2]))).id
        went = {name: await answer_to(owner, case, theirs, owned) for name, case in CASES.items()}
        assert {name: answer for name, answer in went.items() if answer[0] is not grpc.StatusCode.OK} == {}


def _named_by(case: Case) -> set[str]:
    """The kinds of objects that a case's request names."""
    text = str(case.make(Objects("<adapter>", "<dataset>", "<job>", "<unused_dataset>"), "own"))
    return {field.name for field in fields(Objects) if f"<{field.name}>" in text}


async def test_rows_that_name_anothers_adapter_are_told_as_if_it_were_not_there(
    worlds: Worlds, context: Context
) -> None:
    async with worlds(context) as world:
        ann, bob = world.caller("ann"), world.caller("bob")
        theirs = await make_objects(ann, context, "anns")
        answers = []
        for objects in (theirs, ABSENT):
            rows: list[dict[str, object]] = [{**ROWS[0], "on_top_of": [objects.adapter]}, *ROWS[1:]]
            named = (await bob.dataset(jsonl(rows))).id
            for method, make in (("ValidateDataset", _validate), ("CreateJob", _job)):
                case = Case(f"TrainingService/{method}", lambda o, own, make=make: make(own))
                answers.append(await answer_to(bob, case, objects, named))
        assert answers[:2] == answers[2:]
        assert {answer[0] for answer in answers} == {grpc.StatusCode.NOT_FOUND}


async def test_what_others_have_changes_nothing_that_a_tenant_makes(worlds: Worlds, context: Context) -> None:
    """The same names, bytes and idempotency keys as another tenant's: answered as by a server that has nothing."""
    async with worlds(context) as world:
        told = []
        for name in ("ann", "bob"):
            caller = world.caller(name)
            version = await caller.upload("same", adapter_files(context))
            dataset = await caller.dataset(jsonl(ROWS))
            job = await caller.one("TrainingService/CreateJob", _job(dataset.id, name="same", idempotency_key="k"))
            again = await caller.one("TrainingService/CreateJob", _job(dataset.id, name="same", idempotency_key="k"))
            assert again.id == job.id
            told.append((version, dataset, job))
        assert told[0][2].id != told[1][2].id
        for version, dataset, job in told:
            version.created_at = dataset.created_at = job.created_at = 0
            job.id, job.tenant = "job-", ""
        assert told[0] == told[1]


async def test_lists_and_counts_hold_the_callers_own(worlds: Worlds, context: Context) -> None:
    lists: list[tuple[str, Message]] = [
        ("AdapterService/ListAdapters", adapters_pb2.ListAdaptersRequest()),
        ("AdapterService/ListAdapters", adapters_pb2.ListAdaptersRequest(prefix="ann")),
        ("TrainingService/ListDatasets", training_pb2.ListDatasetsRequest()),
        ("TrainingService/ListJobs", training_pb2.ListJobsRequest()),
        ("TrainingService/ListJobs", training_pb2.ListJobsRequest(name="anns")),
    ]
    async with worlds(context) as world:
        ann, bob, narrow = (world.caller(name) for name in ("ann", "bob", "ann's narrow key"))
        empty = [await bob.one(*one) for one in lists]
        info = await bob.one("ServerService/GetServerInfo", server_pb2.GetServerInfoRequest())
        await make_objects(ann, context, "anns")
        await make_objects(ann, context, "mine")
        assert [await bob.one(*one) for one in lists] == empty
        assert not any(message.ListFields() for message in empty)
        now = await bob.one("ServerService/GetServerInfo", server_pb2.GetServerInfoRequest())
        now.uptime_seconds = info.uptime_seconds
        assert now == info
        adapters, _, datasets, jobs, _ = [await narrow.one(*one) for one in lists]
        assert [adapter.name for adapter in adapters.adapters] == ["mine"]
        assert [job.name for job in jobs.jobs] == ["mine"]
        assert len(datasets.datasets) == 3
        seen = await narrow.one("ServerService/GetServerInfo", server_pb2.GetServerInfoRequest())
        assert (seen.adapters_total, dict(seen.jobs)) == (1, {"queued": 1})


async def test_only_an_operator_is_told_how_busy_the_server_is(worlds: Worlds, context: Context) -> None:
    async with worlds(context) as world:
        await make_objects(world.caller("ann"), context, "anns")
        asked = server_pb2.GetServerInfoRequest()
        operators = await world.caller("operator").one("ServerService/GetServerInfo", asked)
        assert dict(operators.adapters_resident) == {"device": 2}  # as the scripted engine has it: loads
        tenants = await world.caller("bob").one("ServerService/GetServerInfo", asked)
        told = {field.name for field, _ in tenants.ListFields()}
        assert not told & {"memory_bytes", "adapters_resident", "requests_running", "requests_waiting"}
        assert not told & {"kv_pages_used", "kv_pages_total"}
        assert {"base", "limits", "state", "version"} <= told


async def test_a_tenant_is_told_what_it_did_itself(worlds: Worlds, context: Context) -> None:
    clock = Clock()
    async with worlds(replace(context, activity=ActivityRecorder(clock))) as world:
        world.backend.script = lambda _: Script((5, 6, 7))
        said = inference_pb2.GenerateRequest(prompt="Hello")
        await world.caller("ann").one("InferenceService/GenerateOnce", said)
        asked = server_pb2.GetStatsRequest(window_seconds=60)
        clock.now += 1
        anns = await world.caller("ann").one("ServerService/GetStats", asked)
        assert anns.own.tenant == "ann"
        assert {field.name for field, _ in anns.ListFields()} == {"window_seconds", "own"}
        bobs = await world.caller("bob").one("ServerService/GetStats", asked)
        assert (bobs.own.tenant, bobs.own.requests_per_second) == ("bob", 0)
        assert not bobs.tenants
        assert not bobs.HasField("total")
        operators = await world.caller("operator").one("ServerService/GetStats", asked)
        assert [each.tenant for each in operators.tenants] == ["ann"]
        assert operators.total.generated_tokens_per_second == anns.own.generated_tokens_per_second > 0
        assert operators.adapters_resident["device"] == 0


async def test_a_tenant_is_told_of_its_own_adapters_and_jobs(worlds: Worlds, context: Context) -> None:
    """Both have an adapter of one name and the same content, and use it: each sees its own name and its own use."""
    clock = Clock()
    async with worlds(replace(context, activity=ActivityRecorder(clock))) as world:
        world.backend.script = lambda _: Script((5, 6, 7))
        ann, bob, narrow, operator = (world.caller(n) for n in ("ann", "bob", "ann's narrow key", "operator"))
        for caller, name, uses in ((ann, "anns", 1), (bob, "bobs", 3)):
            await caller.upload(name, adapter_files(context))
            for _ in range(uses):
                await caller.call("InferenceService/GenerateOnce", _generate(name))
        job = await ann.one("TrainingService/CreateJob", _job((await ann.dataset(jsonl(ROWS))).id, name="anns"))
        clock.now += 1
        told = {c.name: await c.one("ServerService/GetStats", server_pb2.GetStatsRequest()) for c in (ann, bob, narrow)}
        assert [(a.adapter, a.tenant, a.other_versions, a.tier) for a in told["ann"].adapters] == [
            ("anns@1", "ann", 0, 0)
        ]
        assert [a.adapter for a in told["bob"].adapters] == ["bobs@1"]
        mine, theirs = (told[name].adapters[0].requests_per_second for name in ("ann", "bob"))
        assert theirs == pytest.approx(3 * mine)
        assert [(j.job_id, j.name, j.tenant) for j in told["ann"].jobs] == [(job.id, "anns", "ann")]
        assert dict(told["ann"].jobs_by_state) == {"queued": 1}
        assert not told["bob"].jobs
        assert not told["bob"].jobs_by_state
        assert not told["ann's narrow key"].adapters  # it may use another one
        assert not told["ann's narrow key"].jobs
        all_of_it = await operator.one("ServerService/GetStats", server_pb2.GetStatsRequest())
        (both,) = all_of_it.adapters  # one content, one place in memory
        assert (both.adapter, both.tenant, both.other_versions) == ("anns@1", "ann", 1)
        assert both.requests_per_second == pytest.approx(mine + theirs)
        assert adapters_pb2.AdapterTier.Name(both.tier) == "ADAPTER_TIER_DEVICE"
        assert [j.job_id for j in all_of_it.jobs] == [job.id]


async def test_usage_is_told_to_its_tenant_and_to_operators(worlds: Worlds, context: Context) -> None:
    """With another's page token too. A tenant that does not exist answers as one that does."""
    async with worlds(context) as world:
        world.backend.script = lambda _: Script((5, 6, 7))
        for name in ("ann", "operator"):
            await make_objects(world.caller(name), context, "mine")
            for stack in ([], _stack("mine")):
                said = inference_pb2.GenerateRequest(prompt="Hello", adapters=stack)
                await world.caller(name).one("InferenceService/GenerateOnce", said)

        async def rows(caller: str, **asked: Any) -> list[tuple[str, str]]:
            answer = await world.caller(caller).one("UsageService/GetUsage", usage_pb2.GetUsageRequest(**asked))
            return [(row.tenant, row.adapter) for row in answer.rows]

        anns = [("ann", "base"), ("ann", "mine")]
        assert await rows("ann") == await rows("ann", tenant="ann") == anns
        assert await rows("bob") == []
        assert await rows("operator") == [*anns, ("operations", "base"), ("operations", "mine")]
        assert await rows("operator", tenant="ann") == anns
        assert await rows("operator", tenant="nobody") == []
        page = usage_pb2.GetUsageRequest(page_size=2)
        token = (await world.caller("operator").one("UsageService/GetUsage", page)).next_page_token
        assert await rows("operator", page_token=token) == [("operations", "base"), ("operations", "mine")]
        assert await rows("bob", page_token=token) == []
        for caller, asked in (("bob", ("ann", "nobody")), ("ann's narrow key", ("", "ann", "nobody"))):
            answers = []
            for tenant in asked:
                request = usage_pb2.GetUsageRequest(tenant=tenant)
                case = Case("UsageService/GetUsage", lambda o, own, request=request: request)
                answers.append(await answer_to(world.caller(caller), case, ABSENT, ""))
            assert len(set(answers)) == 1
            assert answers[0][0] is grpc.StatusCode.PERMISSION_DENIED


async def test_page_tokens_of_another_tenant_are_as_good_as_invented_ones(worlds: Worlds, context: Context) -> None:
    async with worlds(context) as world:
        ann, bob = world.caller("ann"), world.caller("bob")
        for caller in (ann, bob):
            for name in ("a", "b", "c"):
                await make_objects(caller, context, name)
                await caller.dataset(jsonl([{**ROWS[0], "completion": f"{caller.name} {name}"}]))
        for method, kind in (
            ("TrainingService/ListJobs", training_pb2.ListJobsRequest),
            ("TrainingService/ListDatasets", training_pb2.ListDatasetsRequest),
        ):
            page = await ann.one(method, kind(page_size=1))
            token = page.next_page_token
            mine = (await bob.one(method, kind(page_size=1))).next_page_token
            assert (await bob.one(method, kind(page_size=1, page_token=mine))) != page
            answers = []
            for given in (token, make_token("job-of-nobody")):
                asked = kind(page_token=given)
                answers.append(await answer_to(bob, Case(method, lambda o, own, asked=asked: asked), ABSENT, ""))
            assert answers[0] == answers[1]
            assert answers[0][0] is grpc.StatusCode.INVALID_ARGUMENT
        token = await ann.one("AdapterService/ListAdapters", adapters_pb2.ListAdaptersRequest(page_size=1))
        asked_for = adapters_pb2.ListAdaptersRequest(page_token=token.next_page_token)
        found = await bob.one("AdapterService/ListAdapters", asked_for)
        assert [(adapter.name, adapter.tenant) for adapter in found.adapters] == [("b", "bob"), ("c", "bob")]


async def test_a_key_with_a_list_publishes_under_its_names_alone(worlds: Worlds, context: Context) -> None:
    """What it may not publish is refused alike, whether the tenant has such an adapter or not."""
    requests: dict[str, Callable[[str, str], tuple[str, Request]]] = {
        "upload": lambda name, own: (
            "AdapterService/UploadAdapter",
            adapter_upload(name, adapter_files(context, b=2)),
        ),
        "train": lambda name, own: ("TrainingService/CreateJob", _job(own, name=name)),
        "merge": lambda name, own: (
            "AdapterService/ComposeAdapter",
            adapters_pb2.ComposeAdapterRequest(name=name, adapters=_stack("mine")),
        ),
    }
    async with worlds(context) as world:
        ann, narrow = world.caller("ann"), world.caller("ann's narrow key")
        await make_objects(ann, context, "anns")
        await make_objects(ann, context, "mine")
        own = (await narrow.dataset(jsonl(ROWS))).id
        for make in requests.values():
            answers = [
                await answer_to(narrow, Case(make(name, own)[0], lambda o, own, n=name, m=make: m(n, own)[1]), o, own)
                for name, o in (("anns", replace(ABSENT, adapter="anns")), ("nobodys", ABSENT))
            ]
            assert answers[0] == answers[1]
            assert answers[0][0] is grpc.StatusCode.PERMISSION_DENIED
            await narrow.call(*make("mine", own))


async def until(true: Callable[[], bool]) -> None:
    """Let the server work until something is so that it tells nobody of."""
    async with asyncio.timeout(30):
        while not true():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def test_the_same_request_id_belongs_to_each_ones_own_call(worlds: Worlds, context: Context) -> None:
    """All callers here give the same id. One that leaves ends its own call and no other's."""
    async with worlds(context) as world:
        world.backend.script = lambda command: Script((5, 6), hang=command.prompt_ids[-1:] != (5,))
        asked = inference_pb2.GenerateRequest(prompt=PROMPT, max_tokens=4)
        calls = {
            name: asyncio.create_task(world.caller(name).call("InferenceService/GenerateOnce", asked))
            for name in ("ann", "bob")
        }
        await until(lambda: len(world.backend.commands) == 2)
        ids = {command.tenant: command.id for command in world.backend.commands}
        assert not any("the-same" in id for id in ids.values())
        calls["ann"].cancel()
        await until(lambda: bool(world.backend.aborted))
        assert world.backend.aborted == [ids["ann"]]
        assert (world.backend.open, calls["bob"].done()) == (1, False)
        calls["bob"].cancel()
        await asyncio.gather(*calls.values(), return_exceptions=True)


async def test_series_are_labelled_with_tenants_and_go_with_their_adapters(worlds: Worlds, context: Context) -> None:
    async with worlds(context) as world:
        world.backend.script = lambda command: Script((5,))
        ann, bob = world.caller("ann"), world.caller("bob")
        for caller in (ann, bob):
            await caller.upload("same", adapter_files(context))
            await caller.call("InferenceService/GenerateOnce", _generate("same"))

        def series() -> set[str]:
            found = generate_latest(world.metrics.registry).decode().splitlines()
            return {line for line in found if 'adapter="same"' in line and "prompt_tokens" in line}

        assert {line.split('tenant="')[1][:3] for line in series()} == {"ann", "bob"}
        await ann.one("AdapterService/DeleteAdapter", adapters_pb2.DeleteAdapterRequest(adapter="same"))
        assert {line.split('tenant="')[1][:3] for line in series()} == {"bob"}


async def test_a_shared_adapter_is_everybodys_to_use_and_nobodys_to_change(worlds: Worlds, context: Context) -> None:
    async with worlds(context) as world:
        world.backend.script = lambda command: Script((5,))
        operator, bob, narrow = (world.caller(name) for name in ("operator", "bob", "ann's narrow key"))
        await operator.upload("mine", adapter_files(context))
        refused = Case("AdapterService/ShareAdapter", CASES["share"].make)
        assert (await answer_to(bob, refused, ABSENT, ""))[0] is grpc.StatusCode.PERMISSION_DENIED
        shared = await operator.one("AdapterService/ShareAdapter", adapters_pb2.ShareAdapterRequest(adapter="mine@1"))
        assert (shared.name, shared.tenant, shared.shared, shared.current.version) == ("mine", "", True, 1)
        for caller in (bob, narrow):
            result = await caller.one("InferenceService/GenerateOnce", _generate("mine"))
            assert [(used.name, used.version) for used in result.adapters] == [("mine", 1)]
            found = await caller.one("AdapterService/GetAdapter", adapters_pb2.GetAdapterRequest(adapter="mine"))
            assert (found.shared, found.tenant, found.current.last_used_at) == (True, "", 0)
            for name in ("promote", "alias", "remove an alias", "delete"):
                changed = await answer_to(caller, CASES[name], replace(ABSENT, adapter="mine"), "")
                assert changed[0] is grpc.StatusCode.PERMISSION_DENIED
                assert "ADAPTER_IS_SHARED" in str(changed[2])
        gone = await operator.one("AdapterService/UnshareAdapter", adapters_pb2.UnshareAdapterRequest(name="mine"))
        assert gone.versions_unshared == 1
        after = await answer_to(bob, CASES["get"], replace(ABSENT, adapter="mine"), "")
        assert after == await answer_to(bob, CASES["get"], ABSENT, "")


async def test_errors_about_content_name_no_adapter_of_another_tenant(worlds: Worlds, context: Context) -> None:
    """The same bytes are damaged for both; each hears of its own name alone."""
    async with worlds(context) as world:
        ann, bob = world.caller("ann"), world.caller("bob")
        digest = (await ann.upload("secret-name", adapter_files(context))).digest
        assert (await bob.upload("twin", adapter_files(context))).digest == digest
        (context.store.blobs.local_path(digest) / "adapter_model.safetensors").write_bytes(b"x")
        for caller, own in ((bob, "twin"), (ann, "secret-name")):
            for case in ("download", "generate once"):
                answer = await answer_to(caller, CASES[case], replace(ABSENT, adapter=own), "")
                assert answer[0] is grpc.StatusCode.DATA_LOSS
                assert ("secret-name" in str(answer)) is False
                assert "<adapter>" in str(answer[1])
