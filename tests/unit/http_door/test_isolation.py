"""What is another tenant's, or not on the key's list, answers as what does not exist, over HTTP too."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest

from loramux_server.config import Address
from loramux_server.http.routes import METHODS
from loramux_server.http.server import HttpServer
from loramux_server.services.common.context import Context
from tests.examples import few
from tests.unit.services.fakes import Script
from tests.unit.services.tenants import CALLERS, World, adapter_files, open_world

REQUESTS = {
    "createChatCompletion": {"messages": [{"role": "user", "content": "Where?"}], "max_tokens": 2},
    "createCompletion": {"prompt": "Where?", "max_tokens": 2},
    "createEmbedding": {"input": ["Where?"]},
    "createResponse": {"input": "Where?", "max_output_tokens": 2},
    "countInputTokens": {"input": "Where?"},
    "createMessage": {"messages": [{"role": "user", "content": "Where?"}], "max_tokens": 2},
    "countMessageTokens": {"messages": [{"role": "user", "content": "Where?"}]},
    "retrieveModel": None,
    "deleteModel": None,
}
"""Bodies without their model; None: the model is in the path."""
BY_RESPONSE = ("getResponse", "deleteResponse", "cancelResponse", "listInputItems")
BY_FILE = ("retrieveFile", "downloadFile", "deleteFile")
BY_JOB = (
    *("retrieveFineTuningJob", "listFineTuningEvents", "listFineTuningJobCheckpoints"),
    *("cancelFineTuningJob", "pauseFineTuningJob", "resumeFineTuningJob"),
)
FOLDERS = ("loadLoraAdapter", "unloadLoraAdapter")
"""Looked at in ``test_loading.py``."""
USAGE = ("usage-completions", "usage-embeddings")
"""Looked at in ``test_usage.py``."""
ROWS = b'{"prompt": "Where?", "completion": " Here."}\n' * 8
BY_UPLOAD: dict[str, dict[str, Any]] = {
    "addUploadPart": {"files": {"data": ROWS}},
    "completeUpload": {"json": {"part_ids": ["part_0"]}},
    "cancelUpload": {},
}
"""Bodies of requests that have an upload in their path."""
THEIRS, ABSENT = "anns", "nobd"


@pytest.fixture
async def door(context: Context) -> AsyncIterator[tuple[World, httpx2.AsyncClient]]:
    async with open_world(context) as world:
        world.backend.script = lambda command: Script((5,))
        server = HttpServer(world.availability, world.calls, Address("127.0.0.1", 0))
        await server.start()
        await server.set_serving(True)
        try:
            async with httpx2.AsyncClient(base_url=f"http://{server.address}", timeout=20) as client:
                yield world, client
        finally:
            await server.drain(0)
            await server.stop()


async def answer_to(client: httpx2.AsyncClient, caller: str, operation: str, model: str) -> tuple[int, str, str]:
    """Status, headers and body, the model that was asked for replaced by a word."""
    method, path = METHODS[operation]
    body = REQUESTS[operation]
    answer = await client.request(
        method,
        path.replace("{model:path}", model),
        json=None if body is None else {**body, "model": model},
        headers={"authorization": caller, "x-request-id": "the-same"},
    )
    headers = sorted((key, value) for key, value in answer.headers.items() if key != "date")
    return answer.status_code, str(headers), answer.text.replace(model, "<model>")


def test_every_operation_is_looked_at() -> None:
    looked_at = {*REQUESTS, *BY_RESPONSE, *BY_FILE, *BY_JOB, "listFiles", "listPaginatedFineTuningJobs"}
    looked_at |= {"listModels", "listLoraAdapters"}
    looked_at |= BY_UPLOAD.keys() | set(FOLDERS) | set(USAGE)
    of_the_caller = {"createFile", "createUpload", "createFineTuningJob", "compactConversation"}
    assert looked_at | of_the_caller == METHODS.keys()


@pytest.mark.parametrize("looker", few(["bob", "ann's narrow key", "operator"]))
async def test_what_is_not_for_the_caller_answers_as_what_does_not_exist(
    door: tuple[World, httpx2.AsyncClient], looker: str
) -> None:
    world, client = door
    await world.caller("ann").upload(THEIRS, adapter_files(world.context))
    for operation in REQUESTS:
        for suffix in ("", "@1", "@canary"):
            theirs, absent = [await answer_to(client, looker, operation, f"{n}{suffix}") for n in (THEIRS, ABSENT)]
            assert theirs == absent
            assert theirs[0] == 404
        assert (await answer_to(client, "ann", operation, THEIRS))[0] == 200


async def test_an_answer_is_nobodys_afterwards(door: tuple[World, httpx2.AsyncClient]) -> None:
    """Not even of whoever had it: nothing is kept that an id could lead to."""
    _, client = door
    body = {**REQUESTS["createResponse"], "model": "base"}  # type: ignore[dict-item]
    made = await client.post("/v1/responses", json=body, headers={"authorization": "ann"})
    id = made.json()["id"]
    for operation in BY_RESPONSE:
        for looker in ("ann", "bob", "operator"):
            theirs = await by_id(client, looker, operation, id)
            assert theirs == await by_id(client, looker, operation, id[:-4] + "zzzz"), operation
            assert theirs[0] == 404


async def test_models_are_the_callers_own_and_the_shared_ones(door: tuple[World, httpx2.AsyncClient]) -> None:
    world, client = door
    for name in (THEIRS, "mine"):
        await world.caller("ann").upload(name, adapter_files(world.context))

    async def models(caller: str) -> list[str]:
        answer = await client.get("/v1/models", headers={"authorization": caller})
        return [model["id"] for model in answer.json()["data"]]

    assert await models("ann") == ["base", THEIRS, "mine"]
    assert await models("bob") == ["base"]
    assert await models("ann's narrow key") == ["base", "mine"]
    operator = world.caller("operator")
    await operator.upload("ours", adapter_files(world.context))
    await world.availability.services.adapters.share("ours", CALLERS["operator"])  # type: ignore[union-attr]
    assert await models("bob") == ["base", "ours"]
    assert await models("ann's narrow key") == ["base", "mine"]


def without(text: str, id: str) -> str:
    """A text without an id, and without the one of ours that it stands for."""
    return text.replace(id, "<id>").replace(id.removeprefix("file-").removeprefix("ft"), "<id>")


async def by_id(client: httpx2.AsyncClient, caller: str, operation: str, id: str) -> tuple[int, str, str]:
    """As ``answer_to``, of an operation that has an id in its path."""
    method, path = METHODS[operation]
    headers = {"authorization": caller, "x-request-id": "the-same"}
    for placeholder in ("{response_id}", "{file_id}", "{job_id}"):
        path = path.replace(placeholder, id)
    answer = await client.request(method, path, headers=headers)
    told = sorted((key, value) for key, value in answer.headers.items() if key != "date")
    return answer.status_code, str(told), without(answer.text, id)


async def test_files_and_jobs_of_another_tenant_answer_as_absent_ones(door: tuple[World, httpx2.AsyncClient]) -> None:
    world, client = door
    file = f"file-{(await world.caller('ann').dataset(ROWS)).id}"

    async def create(caller: str, file: str) -> httpx2.Response:
        headers = {"authorization": caller, "x-request-id": "the-same"}
        body = {"model": "base", "training_file": file, "suffix": "theirs"}
        return await client.post("/v1/fine_tuning/jobs", json=body, headers=headers)

    made = await create("ann", file)
    job = made.json()["id"]
    assert made.status_code == 200
    for id, operations, lookers in (
        (file, BY_FILE, ("bob", "operator")),
        (job, BY_JOB, ("bob", "operator", "ann's narrow key")),
    ):
        absent = id[:-4] + ("0000" if id[-4:] != "0000" else "1111")
        for looker in lookers:
            for operation in operations:
                theirs = await by_id(client, looker, operation, id)
                assert theirs == await by_id(client, looker, operation, absent), operation
                assert theirs[0] == 404, operation
    refused = [await create("bob", id) for id in (file, file[:-4] + "0000")]
    assert [answer.status_code for answer in refused] == [404, 404]
    assert without(refused[0].text, file) == without(refused[1].text, file[:-4] + "0000")
    for path in ("/v1/files", "/v1/fine_tuning/jobs"):
        for caller, count in (("ann", 1), ("bob", 0), ("operator", 0)):
            answer = await client.get(path, headers={"authorization": caller})
            assert len(answer.json()["data"]) == count, (path, caller)
    assert (await by_id(client, "ann", "cancelFineTuningJob", job))[0] == 200


@pytest.mark.parametrize("looker", ["bob", "operator"])
async def test_uploads_of_another_tenant_answer_as_absent_ones(
    door: tuple[World, httpx2.AsyncClient], looker: str
) -> None:
    _, client = door

    async def ask(caller: str, operation: str, id: str) -> httpx2.Response:
        method, path = METHODS[operation]
        headers = {"authorization": caller, "x-request-id": "the-same"}
        return await client.request(
            method, path.replace("{upload_id}", id), headers=headers, **BY_UPLOAD.get(operation, {})
        )

    body = {"bytes": len(ROWS), "filename": "a", "mime_type": "text/jsonl", "purpose": "fine-tune"}
    made = await client.post("/v1/uploads", json=body, headers={"authorization": "ann"})
    id = made.json()["id"]
    absent = f"upload_{'0' * 32}"
    for operation in BY_UPLOAD:
        answers = [await ask(looker, operation, one) for one in (id, absent)]
        assert [answer.status_code for answer in answers] == [404, 404]
        assert answers[0].text.replace(id, "<id>") == answers[1].text.replace(absent, "<id>")
    part = await ask("ann", "addUploadPart", id)
    assert part.status_code == 200
    for caller, one, status in ((looker, id, 404), (looker, absent, 404), ("ann", id, 200)):
        answer = await client.post(
            f"/v1/uploads/{one}/complete",
            json={"part_ids": [part.json()["id"]]},
            headers={"authorization": caller},
        )
        assert answer.status_code == status
