"""Files as OpenAI's own client sends them, and forms as nobody should."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

import openai
import pytest
from openai.types import FileDeleted, FileObject

from loramux_server.core.callers.principal import LOCAL, Principal, Scope
from loramux_server.core.errors import Error
from loramux_server.http.bodies.multipart import OVERHEAD
from loramux_server.services.access.credentials import Credentials
from loramux_server.services.common.types import FileSpec

from .conftest import Http

ROWS = b"".join(b'{"prompt": "Where is shop %d?", "completion": " In street %d."}\n' % (i, i) for i in range(12))


class Tenants:
    """Each key is a tenant of its own."""

    async def authenticate(self, credentials: Credentials) -> Principal:
        return Principal(credentials.authorization[0].removeprefix("Bearer "), frozenset(Scope), "k")


async def upload(http: Http, data: bytes = ROWS, name: str = "shops.jsonl") -> FileObject:
    return await http.openai.files.create(file=(name, data), purpose="fine-tune")


def form(*parts: tuple[str, bytes], boundary: str = "b") -> bytes:
    """A form of parts, each with what stands behind ``form-data; `` and its bytes."""
    mark = b"\r\n--" + boundary.encode()
    each = [mark + b"\r\nContent-Disposition: form-data; " + head.encode() + b"\r\n\r\n" + body for head, body in parts]
    return (b"".join(each) + mark + b"--\r\n").removeprefix(b"\r\n")


async def test_a_file_is_a_dataset(http: Http) -> None:
    stored = await upload(http)
    FileObject.model_validate(stored.model_dump(), strict=True)
    assert (stored.filename, stored.bytes, stored.purpose) == ("shops.jsonl", len(ROWS), "fine-tune")
    assert (await upload(http, name="again.jsonl")).id == stored.id
    assert await http.openai.files.retrieve(stored.id) == stored
    assert (await http.openai.files.content(stored.id)).content == ROWS
    (dataset,), _ = http.context.store.datasets.list("default")
    assert (f"file-{dataset.id}", dataset.rows) == (stored.id, 12)
    assert (await http.openai.files.retrieve(dataset.id)).id == stored.id


async def test_a_file_is_deleted_when_no_job_has_it(http: Http) -> None:
    stored = await upload(http)
    job = await http.openai.fine_tuning.jobs.create(model="base", training_file=stored.id)
    with pytest.raises(openai.BadRequestError, match=job.id.removeprefix("ft")) as caught:
        await http.openai.files.delete(stored.id)
    assert caught.value.code == "dataset_in_use"
    await http.openai.fine_tuning.jobs.cancel(job.id)
    gone = await http.openai.files.delete(stored.id)
    FileDeleted.model_validate(gone.model_dump(), strict=True)
    assert (gone.id, gone.deleted) == (stored.id, True)
    assert http.context.unused.is_set()  # its bytes are collected
    for call in (http.openai.files.retrieve, http.openai.files.content, http.openai.files.delete):
        with pytest.raises(openai.NotFoundError):
            await call(stored.id)
    assert (await http.openai.fine_tuning.jobs.retrieve(job.id)).training_file == stored.id
    assert (await upload(http)).id == stored.id


async def test_lists_of_files_have_pages(http: Http) -> None:
    ids = [(await upload(http, ROWS + b"\n" * i, f"{i}.jsonl")).id for i in range(5)]
    assert [file.id async for file in http.openai.files.list()] == ids[::-1]
    page = await http.openai.files.list(limit=2)
    assert ([file.id for file in page.data], page.has_more) == (ids[:2:-1], True)
    page = await http.openai.files.list(limit=2, after=ids[2])
    assert ([file.id for file in page.data], page.has_more) == ([ids[1], ids[0]], False)
    assert [file.id async for file in http.openai.files.list(limit=2)] == ids[::-1]
    assert [file.id async for file in http.openai.files.list(limit=2, order="asc")] == ids
    assert [file.id async for file in http.openai.files.list(purpose="batch")] == []
    with pytest.raises(openai.NotFoundError):
        await http.openai.files.list(after="file-ds-0000000000000000")
    for query in ("limit=0", "limit=x", "limit=10001", "order=up", "unknown=1", "limit=1&limit=2"):
        answer = await http.raw.get(f"/v1/files?{query}")
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, query.partition("=")[0])


async def test_files_of_others_are_absent(http: Http) -> None:
    http.access.authenticator = Tenants()
    mine = http.openai.with_options(api_key="a")
    stored = await mine.files.create(file=("x.jsonl", ROWS), purpose="fine-tune")
    absent, told = "file-ds-0123456789abcdef", []
    for client, id in ((http.openai.with_options(api_key="b"), stored.id), (mine, absent)):
        assert [file.id async for file in client.files.list()] == ([stored.id] if client is mine else [])
        for call in (client.files.retrieve, client.files.content, client.files.delete):
            with pytest.raises(openai.NotFoundError) as caught:
                await call(id)
            assert caught.value.code == "dataset_not_found"
            told.append(str(caught.value).replace(id.removeprefix("file-"), "ID"))
    assert told[:3] == told[3:]


@pytest.mark.parametrize("purpose", ["assistants", "batch", "", "x" * 5000])
async def test_other_purposes_are_refused(http: Http, purpose: Any) -> None:
    for parts in (
        [('name="purpose"', purpose.encode()), ('name="file"; filename="a"', ROWS)],
        [('name="file"; filename="a"', ROWS), ('name="purpose"', purpose.encode())],
    ):
        answer = await send(http, form(*parts))
        assert answer.status_code == 400
    assert http.context.store.datasets.list("default") == ((), "")


async def send(http: Http, body: bytes, boundary: str = "b") -> Any:
    headers = {"content-type": f"multipart/form-data; boundary={boundary}"}
    return await http.raw.post("/v1/files", content=body, headers=headers)


async def test_forms_as_other_clients_send_them(http: Http) -> None:
    """Parts in any order, names without quotes, boundaries in the data's way, bytes one by one."""
    data = ROWS + b'{"text": "\\r\\n--b"}\r\n-\r\n--\r\n--c'
    for parts, name in (
        ([('name="file"; filename="a b.jsonl"', data), ('name="purpose"', b"fine-tune")], "a b.jsonl"),
        ([("name=purpose", b"fine-tune"), ("name=file; filename=a.jsonl", data + b"1")], "a.jsonl"),
        ([('name="purpose"', b"fine-tune"), ('name="file"; filename="../ü.jsonl"', data + b"2")], "../ü.jsonl"),
    ):
        whole = form(*parts)

        async def pieces(whole: bytes = whole) -> Any:
            for i in range(len(whole)):
                yield whole[i : i + 1]

        headers = {"content-type": 'multipart/form-data; charset=utf-8; boundary="b"'}
        answer = await http.raw.post("/v1/files", content=pieces(), headers=headers)
        assert answer.status_code == 200, answer.text
        assert answer.json()["filename"] == name
        content = (await http.openai.files.content(answer.json()["id"])).content
        assert content == next(body for head, body in parts if "file" in head)


FILE = ('name="file"; filename="a"', ROWS)
FORM = "multipart/form-data; boundary=b"
PURPOSE = ('name="purpose"', b"fine-tune")
GOOD = form(PURPOSE, FILE)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"", None),
        (b"--b", None),
        (b"--b--", "file"),
        (GOOD[:-5], None),
        (GOOD[:-60], None),
        (b"hello\r\n" + GOOD, None),
        (GOOD.replace(b"Content-Disposition", b"X-Other"), None),
        (GOOD.replace(b"form-data;", b"form-data; " + b"x" * 5000), None),
        (GOOD.replace(b"--b\r\n", b"--b \r\n"), None),
        (b"--b" * 100_000, "file"),
        (form(*[PURPOSE] * 2, FILE), "purpose"),
        (form(*[(f'name="{i}"', b"") for i in range(2)], FILE), "0"),
        (form(PURPOSE, FILE, FILE), "file"),
        (form(FILE), "purpose"),
        (form(PURPOSE), "file"),
        (form(PURPOSE, ('name="expires_after[anchor]"', b"created_at"), FILE), "expires_after"),
        (form(('name="purpose"', b"\xff"), FILE), "purpose"),
    ],
)
async def test_forms_that_are_none(http: Http, body: bytes, param: str | None) -> None:
    answer = await send(http, body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param
    assert http.context.store.datasets.list("default") == ((), "")
    assert not any(http.context.store.state.tmp.iterdir())


async def test_files_that_are_too_large_or_no_form(http: Http) -> None:
    most = http.context.limits.max_dataset_bytes
    reader, writer = await asyncio.open_connection(*http.server.address)
    head = f"POST /v1/files HTTP/1.1\r\nhost: x\r\ncontent-type: {FORM}\r\ncontent-length: {most * 2}\r\n\r\n"
    writer.write(head.encode())  # and no body: what is announced is refused unread
    assert b" 413 " in await asyncio.wait_for(reader.readline(), 10)
    writer.close()
    for kind in ("application/json", "multipart/form-data", "multipart/mixed; boundary=b", ""):
        answer = await http.raw.post("/v1/files", content=GOOD, headers={"content-type": kind})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "content-type")


async def test_a_damaged_file_is_not_given_out(http: Http) -> None:
    stored = await upload(http)
    dataset = http.context.store.datasets.get(stored.id.removeprefix("file-"), "default")
    path = http.context.store.blobs.local_path(dataset.digest)
    path.chmod(0o600)
    path.write_bytes(b"x" + ROWS[1:])
    answer = await http.raw.get(f"/v1/files/{stored.id}/content")
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "blob_damaged")
    assert json.loads(answer.text)["error"]["message"].endswith("upload the same file again, which heals it")


async def test_a_file_over_the_quota_is_refused_before_its_bytes_come(http: Http) -> None:
    stored = await upload(http)
    http.context.store.quotas.set("tenant:default", {"stored_bytes": len(ROWS) + 10})
    head = form(("name=purpose", b"fine-tune"), ('name=file; filename="x.jsonl"', b""))[: -len(b"\r\n--b--\r\n")]
    reader, writer = await asyncio.open_connection(*http.server.address)
    lines = (
        "POST /v1/files HTTP/1.1",
        "Host: x",
        "Content-Type: multipart/form-data; boundary=b",
        f"Content-Length: {OVERHEAD + len(ROWS) + 1000}",
    )
    writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + head)
    async with asyncio.timeout(20):
        assert b" 429 " in await reader.readline()
        assert b"quota_exceeded" in await reader.readuntil(b"quota_exceeded")
    writer.close()
    assert (await upload(http)).id == stored.id  # what is stored takes nothing more


async def test_an_upload_over_the_quota_is_refused_unread(http: Http) -> None:
    """As both doors ask the services, with the sizes that a caller announces."""
    services = http.availability.open()
    http.context.store.quotas.set("tenant:default", {"stored_bytes": 1000})

    async def unread() -> AsyncGenerator[Any]:
        raise AssertionError("it was read")
        yield

    with pytest.raises(Error, match="stored bytes is limited to 1000, and this asks for 1001"):
        await services.training.upload_dataset(unread(), LOCAL, announced=(1001, 1001))
    files = (FileSpec("adapter_config.json", 1), FileSpec("adapter_model.safetensors", 1000))
    with pytest.raises(Error, match="stored bytes is limited to 1000"):
        await services.adapters.upload("acme", unread(), LOCAL, files=files)
