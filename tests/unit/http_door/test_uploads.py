"""Files in parts, as OpenAI's own client sends them and as nobody should."""

from __future__ import annotations

import asyncio
import hashlib
import json
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types import Upload
from openai.types.uploads import UploadPart

from loramux_server.core.callers.principal import Scope
from loramux_server.services.access.methods import METHODS

from .conftest import Http
from .test_files import FORM, ROWS, form

MD5 = hashlib.md5(ROWS, usedforsecurity=False).hexdigest()


async def begin(http: Http, size: int = len(ROWS), **fields: Any) -> Upload:
    given = {"filename": "shops.jsonl", "mime_type": "text/jsonl", "purpose": "fine-tune", **fields}
    return await http.openai.uploads.create(bytes=size, **given)


async def add(http: Http, upload: Upload, data: bytes) -> str:
    return (await http.openai.uploads.parts.create(upload.id, data=data)).id


def stored(http: Http) -> int:
    return len(http.context.store.datasets.list("default")[0])


async def test_a_file_in_parts(http: Http, tmp_path: Path) -> None:
    whole = await http.openai.files.create(file=("whole.jsonl", ROWS), purpose="fine-tune")
    await http.openai.files.delete(whole.id)
    (tmp_path / "shops.jsonl").write_bytes(ROWS)
    done = await http.openai.uploads.upload_file_chunked(
        file=tmp_path / "shops.jsonl", mime_type="text/jsonl", purpose="fine-tune", part_size=100, md5=MD5
    )
    Upload.model_validate(done.model_dump(), strict=True)
    assert (done.status, done.bytes, done.purpose) == ("completed", len(ROWS), "fine-tune")
    assert done.expires_at == done.created_at + 3600
    assert done.file is not None
    assert (done.file.id, done.file.filename) == (whole.id, "shops.jsonl")
    assert (await http.openai.files.content(done.file.id)).content == ROWS
    (dataset,), _ = http.context.store.datasets.list("default")
    assert dataset.rows == 12
    assert http.context.store.uploads.referenced_digests() == frozenset()
    job = await http.openai.fine_tuning.jobs.create(model="base", training_file=done.file.id)
    assert job.status == "queued"


async def test_parts_in_any_order_and_some_twice(http: Http) -> None:
    data = b"abc" * 30 + b"xyz"
    upload = await begin(http, len(data))
    Upload.model_validate(upload.model_dump(), strict=True)
    assert (upload.status, upload.file) == ("pending", None)
    last, first, again = await asyncio.gather(*(add(http, upload, one) for one in (b"xyz", b"abc" * 15, b"abc" * 15)))
    assert again == first
    UploadPart.model_validate(
        (await http.openai.uploads.parts.create(upload.id, data=b"xyz")).model_dump(), strict=True
    )
    complete = http.openai.uploads.complete
    for part_ids, param in (
        ([first, last], "part_ids"),
        ([last] * (http.context.limits.max_upload_parts + 1), "part_ids"),
        ([first, first, last, last], "part_ids"),
        ([first, "part_0", last], "part_ids[1]"),
        ([], "part_ids"),
    ):
        with pytest.raises(openai.BadRequestError) as caught:
            await complete(upload.id, part_ids=part_ids)
        assert caught.value.param == param
    with pytest.raises(openai.BadRequestError, match="md5"):
        await complete(upload.id, part_ids=[last, first, first], md5=hashlib.md5(data).hexdigest())
    assert stored(http) == 0
    asked = [complete(upload.id, part_ids=[first, first, last], md5=hashlib.md5(data).hexdigest()) for _ in range(3)]
    done = await asyncio.gather(*asked)
    assert done[0].file is not None
    assert [one.file for one in done] == [done[0].file] * 3
    assert await complete(upload.id, part_ids=[first, first, last]) == done[0]  # an answer that was lost
    assert (await http.openai.files.content(done[0].file.id)).content == data
    for late in (lambda: add(http, upload, b"more"), lambda: http.openai.uploads.cancel(upload.id)):
        with pytest.raises(openai.BadRequestError, match="completed"):
            await late()
    await http.openai.files.delete(done[0].file.id)
    with pytest.raises(openai.NotFoundError):
        await complete(upload.id, part_ids=[first, first, last])


async def test_a_cancelled_upload_is_gone(http: Http) -> None:
    upload = await begin(http)
    part = await add(http, upload, ROWS)
    cancelled = await http.openai.uploads.cancel(upload.id)
    assert (cancelled.status, cancelled.file) == ("cancelled", None)
    assert await http.openai.uploads.cancel(upload.id) == cancelled
    assert http.context.unused.is_set()
    assert http.context.store.collect_orphans() != ()
    for call in (lambda: add(http, upload, b"x"), lambda: http.openai.uploads.complete(upload.id, part_ids=[part])):
        with pytest.raises(openai.BadRequestError, match="cancelled"):
            await call()


async def test_an_upload_expires_while_the_server_runs(http: Http) -> None:
    seconds = http.context.limits.max_upload_seconds
    upload = await begin(http)
    await add(http, upload, ROWS)
    http.context.store.uploads._now = lambda: upload.created_at + seconds + 1
    assert http.availability.services is not None
    http.context.unused.clear()
    sweep = asyncio.create_task(http.availability.services.uploads.run())
    await asyncio.wait_for(http.context.unused.wait(), 10)
    sweep.cancel()
    assert http.context.store.collect_orphans() != ()
    with pytest.raises(openai.NotFoundError, match="its time is over"):
        await add(http, upload, ROWS)


@pytest.mark.parametrize(
    ("changes", "status", "param"),
    [
        ({"bytes": 0}, 400, "bytes"),
        ({"bytes": -1}, 400, "bytes"),
        ({"bytes": "12"}, 400, "bytes"),
        ({"bytes": 2**70}, 413, None),
        ({"bytes": 1 << 40}, 413, None),
        ({"bytes": None}, 400, "bytes"),
        ({"purpose": "assistants"}, 400, "purpose"),
        ({"expires_after": {"anchor": "created_at", "seconds": 3600}}, 400, "expires_after"),
        ({"filename": 3}, 400, "filename"),
        ({"md5": "x"}, 400, "md5"),
    ],
)
async def test_uploads_that_cannot_be(http: Http, changes: dict[str, Any], status: int, param: str | None) -> None:
    body = {"bytes": 12, "filename": "a", "mime_type": "b", "purpose": "fine-tune", **changes}
    answer = await http.raw.post("/v1/uploads", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param), answer.text


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"", None),
        (b"--b--", "data"),
        (form(('name="file"', b"x")), "file"),
        (form(('name="data"', b"x"), ('name="data"', b"y")), "data"),
        (form(('name="data"', b"x"), ('name="more"', b"y")), "more"),
        (form(('name="data"', b"x"))[:-4], None),
    ],
)
async def test_parts_that_are_none(http: Http, body: bytes, param: str | None) -> None:
    upload = await begin(http)
    answer = await http.raw.post(f"/v1/uploads/{upload.id}/parts", content=body, headers={"content-type": FORM})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text
    assert http.context.store.uploads.parts(upload.id, "default") == {}
    assert not any(http.context.store.state.tmp.iterdir())


async def test_parts_that_are_too_large(http: Http) -> None:
    upload = await begin(http, 10)
    with pytest.raises(openai.APIStatusError) as caught:
        await add(http, upload, b"x" * 11)
    assert (caught.value.status_code, caught.value.code) == (413, "upload_too_large")
    await add(http, upload, b"x" * 6)
    with pytest.raises(openai.APIStatusError, match="announced with 10") as caught:
        await add(http, upload, b"y" * 5)
    assert caught.value.status_code == 413
    most = http.context.limits.max_part_bytes
    reader, writer = await asyncio.open_connection(*http.server.address)
    path = f"/v1/uploads/{upload.id}/parts"
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: {FORM}\r\ncontent-length: {most * 2}\r\n\r\n"
    writer.write(head.encode())  # and no body: what is announced is refused unread
    assert b" 413 " in await asyncio.wait_for(reader.readline(), 10)
    writer.close()


async def test_a_tenant_has_few_uploads_at_once(http: Http) -> None:
    for _ in range(http.context.limits.max_pending_uploads):
        upload = await begin(http, 1)
    with pytest.raises(openai.RateLimitError) as caught:
        await begin(http, 1)
    assert caught.value.code == "too_many_uploads"
    await http.openai.uploads.cancel(upload.id)
    await begin(http, 1)


@pytest.mark.parametrize("id", ["upload_" + "0" * 32, "x", "%00", "..%2Ffiles", "a" * 5000])
async def test_uploads_that_are_absent(http: Http, id: str) -> None:
    for path, given in (
        ("parts", {"content": form(('name="data"', b"x")), "headers": {"content-type": FORM}}),
        ("complete", {"content": json.dumps({"part_ids": ["p"]}), "headers": {"content-type": "application/json"}}),
        ("cancel", {}),
    ):
        answer = await http.raw.post(f"/v1/uploads/{id}/{path}", **given)  # type: ignore[arg-type]
        assert answer.status_code == 404, answer.text


def test_all_operations_are_audited() -> None:
    names = ("createUpload", "addUploadPart", "completeUpload", "cancelUpload")
    methods = [METHODS[f"openai.v1/{name}"] for name in names]
    assert [(method.scope, method.audited) for method in methods] == [(Scope.TRAIN, True)] * 4
