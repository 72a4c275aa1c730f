"""The sync and the async client against a real server."""

from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import loramux
from loramux import AsyncClient, Client
from loramux.v1 import adapters_pb2, common_pb2, inference_pb2

from .fake import Fake, version


def endless(_: Any, context: Any) -> Iterator[inference_pb2.GenerateResponse]:
    while context.is_active():
        yield inference_pb2.GenerateResponse(text="x")


def test_generate(fake: Fake, client: Client) -> None:
    answer = client.generate("hi", adapters={"acme": 0.5}, n=2, max_tokens=4)
    assert (answer.text, answer.finish_reason, len(answer.choices)) == ("answer 0", "stop", 2)
    assert answer.choices[1].text == "answer 1"
    assert answer.usage.total_tokens == 5
    assert [(a.ref, a.weight) for a in answer.adapters] == [("acme@1", 0.5)]
    assert answer.logprobs[0].top[0].token == "a"
    assert (answer.logprobs[0].bytes, answer.logprobs[0].top[0].bytes) == (b"\xf0\x9f", b"a")
    assert fake.last("GenerateOnce").max_tokens == 4


def test_field_36_score_and_tokenize_have_bytes(client: Client) -> None:
    assert b"".join(client.score("x", "ab").bytes) == b"".join(client.tokenize("ab").bytes) == b"ab"


def test_stream(client: Client) -> None:
    with client.stream("hi") as stream:
        chunks = list(stream)
    assert [c.text for c in chunks] == ["Hel", "lo", ""]
    assert (chunks[0].finish_reason, chunks[0].usage) == (None, None)
    answer = stream.completion
    assert (answer.text, answer.token_ids, answer.finish_reason) == ("Hello", (1, 2, 3), "length")
    assert (answer.usage.cached_tokens, answer.request_id, answer.adapters[0].ref) == (1, "r2", "acme@2")


def test_leaving_a_stream_cancels_the_call(fake: Fake, client: Client) -> None:
    fake.handlers["Generate"] = endless
    for _ in client.stream("hi"):
        break
    gc.collect()
    assert fake.cancelled.wait(10)


def test_wrong_arguments_send_nothing(fake: Fake, client: Client) -> None:
    with pytest.raises(loramux.InvalidArgument):
        client.stream("hi", adapters=[5])  # type: ignore[list-item]
    assert fake.requests == []


def test_embed(fake: Fake, client: Client) -> None:
    found = client.embed(["a", (5, 6)], adapters={"acme": 0.5}, pooling="last", normalize=False, dimensions=2)
    assert found.vectors == ((0.5, 0.0), (0.5, 1.0))
    assert found.usage.prompt_tokens == 3
    request = fake.last("Embed")
    assert [(i.text, list(i.token_ids.ids), i.WhichOneof("content")) for i in request.input] == [
        ("a", [], "text"),
        ("", [5, 6], "token_ids"),
    ]
    assert (request.pooling, request.normalize, request.dimensions) == (inference_pb2.POOLING_LAST, False, 2)
    assert [(e.adapter, e.weight) for e in request.adapters] == [("acme", 0.5)]
    assert client.embed("a").vectors == ((0.5, 0.0),)
    plain = fake.last("Embed")
    assert (plain.pooling, plain.HasField("normalize"), plain.HasField("dimensions")) == (0, False, False)
    wrong: list[tuple[Any, dict[str, Any], str]] = [
        (5, {}, "input"),
        ([5], {}, r"input\[0\]"),
        ([["a"]], {}, r"input\[0\]"),
        ("a", {"pooling": "cls"}, "pooling"),
        ("a", {"dimensions": "x"}, "dimensions"),
    ]
    for given, options, field in wrong:
        with pytest.raises(loramux.InvalidArgument, match=field):
            client.embed(given, **options)


def test_score_tokenize_info_health(fake: Fake, client: Client) -> None:
    score = client.score("a", "b", adapters=["acme"])
    assert (score.total, score.greedy) == (-1.5, (True, False))
    assert fake.last("Score").continuation == "b"
    tokens = client.tokenize(messages=[{"role": "user", "content": "hi"}])
    assert (len(tokens), tokens.text) == (2, "ab")
    info = client.info()
    assert (info.version, info.state, info.base_name) == ("9.9", "ready", "tiny")
    assert (list(info.memory_bytes), info.limits) == (["adapters", "base"], {"max_stack": 8})
    assert client.health() == "SERVING"
    assert client.health("loramux.v1.Nothing") == "SERVICE_UNKNOWN"


def test_the_key_goes_with_every_call(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORAMUX_ADDRESS", fake.address)
    monkeypatch.setenv("LORAMUX_API_KEY", "lmx_env")
    with Client() as client:
        client.info()
    assert ("authorization", "Bearer lmx_env") in fake.metadata
    with Client(api_key="lmx_given") as client:
        list(client.stream("hi"))
    assert ("authorization", "Bearer lmx_given") in fake.metadata
    with pytest.raises(loramux.InvalidArgument, match="api_key"):
        Client(api_key="bad\nkey")


def test_adapters(fake: Fake, client: Client) -> None:
    assert [a.name for a in client.adapters.list(prefix="a")] == ["acme", "birch", "cedar"]
    assert [r.page_token for name, r in fake.requests if name == "ListAdapters"] == ["", "2"]
    adapter = client.adapters.get("acme")
    assert ([v.version for v in adapter.versions], adapter.aliases) == ([2, 1], {"old": 1})
    current = adapter.current
    assert current is not None
    assert (current.tier, current.state, current.ref) == ("device", "ready", "acme@2")
    assert current.trained_on == ((loramux.StackItem("pine@1", 1.3),),)
    assert client.adapters.delete("acme@1") == 2
    assert client.adapters.set_alias("acme", 1).current == loramux._wire.messages.responses.adapter_version(
        version(number=1)
    )  # type: ignore[attr-defined]
    shared = client.adapters.share("acme@2")
    assert (shared.name, shared.tenant, shared.shared, [v.shared for v in shared.versions]) == (
        "acme",
        "",
        True,
        [True],
    )
    assert (fake.last("ShareAdapter").adapter, client.adapters.unshare("acme")) == ("acme@2", 2)
    assert (client.adapters.pin("acme@2").name, client.adapters.unpin("acme@2").name) == ("acme@2", "acme@2")


def peft_folder(folder: Path) -> dict[str, bytes]:
    files = {
        "adapter_config.json": b"{}",
        "adapter_model.safetensors": bytes(range(256)) * 10_000,
        "README.md": b"",
    }
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    (folder / "optimizer.pt").write_bytes(b"private")
    return files


def test_upload_takes_the_adapter_s_own_files_only(fake: Fake, client: Client, tmp_path: Path) -> None:
    files = peft_folder(tmp_path / "a")
    assert client.adapters.upload("acme", tmp_path / "a", metadata={"by": "me"}).ref == "acme@1"
    assert fake.uploaded == {name: content for name, content in files.items() if content}
    header = fake.last("UploadAdapter")
    assert ([f.name for f in header.files], dict(header.metadata)) == (list(files), {"by": "me"})


def test_upload_refuses_what_is_no_adapter(client: Client, tmp_path: Path) -> None:
    with pytest.raises(loramux.InvalidArgument, match="no folder"):
        client.adapters.upload("acme", tmp_path / "nothing")
    with pytest.raises(loramux.InvalidArgument, match=r"adapter_config\.json"):
        client.adapters.upload("acme", tmp_path)
    (tmp_path / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(loramux.InvalidArgument, match="pickled"):
        client.adapters.upload("acme", tmp_path)


def test_download(client: Client, tmp_path: Path) -> None:
    assert client.adapters.download("acme", tmp_path / "new" / "acme").ref == "acme@2"
    found = {p.name: p.read_bytes() for p in (tmp_path / "new" / "acme").iterdir()}
    assert found == {"adapter_config.json": b"{}", "empty.txt": b"", "adapter_model.safetensors": b"x" * 100}


def test_a_lost_file_is_told_of_where_the_download_was_asked_for(fake: Fake, client: Client, tmp_path: Path) -> None:
    lost = adapters_pb2.DownloadAdapterHeader(version=version(), lost=["README.md"])
    fake.handlers["DownloadAdapter"] = sent(adapters_pb2.DownloadAdapterResponse(header=lost))
    with pytest.warns(UserWarning, match=r"README.md of acme@2 is lost") as warned:
        client.adapters.download("acme", tmp_path)
    assert warned[0].filename == __file__


def sent(*messages: Any) -> Any:
    return lambda _, context: iter(messages)


def header(name: str, size: int, sha256: str = "") -> adapters_pb2.DownloadAdapterResponse:
    info = common_pb2.FileInfo(name=name, size=size, sha256=sha256)
    return adapters_pb2.DownloadAdapterResponse(
        header=adapters_pb2.DownloadAdapterHeader(version=version(), files=[info])
    )


def chunk(name: str, data: bytes) -> adapters_pb2.DownloadAdapterResponse:
    return adapters_pb2.DownloadAdapterResponse(chunk=common_pb2.FileChunk(name=name, data=data))


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [header("a", 3)],
        [header("a", 3), chunk("a", b"ab")],
        [header("a", 3), chunk("a", b"abcd")],
        [header("a", 3), chunk("b", b"abc")],
        [header("a", 3, "0" * 64), chunk("a", b"abc")],
        [header("../a", 3), chunk("../a", b"abc")],
        [header("/tmp/a", 3), chunk("/tmp/a", b"abc")],
        [header("..", 3), chunk("..", b"abc")],
        [header("", 3), chunk("", b"abc")],
    ],
)
def test_a_damaged_download_leaves_nothing(fake: Fake, client: Client, tmp_path: Path, messages: list[Any]) -> None:
    fake.handlers["DownloadAdapter"] = sent(*messages)
    with pytest.raises(loramux.DataLoss):
        client.adapters.download("acme", tmp_path / "out")
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def test_datasets(fake: Fake, client: Client, tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_bytes(b'{"text": "a"}\n' * 100_000)
    report = client.datasets.validate(tmp_path / "d.jsonl", epochs=2)
    assert len(fake.uploaded["d.jsonl"]) == 1_400_000
    assert fake.last("ValidateDataset").settings.epochs == 2
    assert [str(p) for p in report.problems] == ["line 3, messages: is empty"]
    assert (report.valid, report.estimated_seconds, report.estimated_memory_bytes) == (False, 75, None)
    assert (report.estimated_from, report.too_long, report.warnings) == ("the speed of job j", 1, ("few",))
    assert report.shown == ()
    (row,) = client.datasets.show([{"text": "a"}], rows=1, line=4).shown
    assert (row.line, row.text[1].text, row.text[1].trained, row.tokens) == (4, "Here.<end>", True, 9)


def test_datasets_are_deleted(fake: Fake, client: Client) -> None:
    (stored,) = client.datasets.list()
    for named in (stored, "ds-1"):
        client.datasets.delete(named)
        assert fake.last("DeleteDataset").dataset_id == "ds-1"


def test_training_on_pairs_and_with_replay(fake: Fake, client: Client) -> None:
    pairs = [{"prompt": "a", "chosen": " b", "rejected": " c"}]
    client.train("polite", data=pairs, method="dpo", beta=0.2)
    settings = fake.last("CreateJob").settings
    assert (settings.method, settings.beta, settings.HasField("replay")) == ("dpo", 0.2, False)
    client.train("acme", data=[{"text": "a"}], method="auto", replay="default")
    settings = fake.last("CreateJob").settings
    assert (settings.HasField("method"), settings.replay, settings.HasField("replay_rows")) == (False, "default", False)
    client.train("acme", data=[{"text": "a"}], replay=[{"text": "general"}], replay_rows=8)
    settings = fake.last("CreateJob").settings
    assert (settings.replay, settings.replay_rows) == ("data-rows.jsonl", 8)
    assert fake.uploaded["rows.jsonl"] == b'{"text": "general"}\n'


@pytest.mark.parametrize("data", ["missing.jsonl", [], ["text"], [{"text": float("nan")}], [{"text": {1, 2}}]])
def test_data_that_is_none(fake: Fake, client: Client, data: Any) -> None:
    with pytest.raises(loramux.InvalidArgument, match="data"):
        client.train("acme", data)
    assert fake.requests == []


def test_train_sends_data_and_settings(fake: Fake, client: Client) -> None:
    rows = [{"prompt": "ä", "completion": "b"}]
    job = client.train("acme", rows, validation=rows, rank=4, layers="1-2", on_top_of=[{"pine": 1.3}, []])
    assert job.id == "job-1"
    assert json.loads(fake.uploaded["rows.jsonl"]) == rows[0]
    request = fake.last("CreateJob")
    assert (request.dataset_id, request.validation_dataset_id) == ("data-rows.jsonl", "data-rows.jsonl")
    assert (request.settings.rank, list(request.settings.layers)) == (4, [1, 2])
    assert [len(s.entries) for s in request.on_top_of] == [1, 0]
    assert request.idempotency_key
    assert not request.settings.HasField("alpha")
    client.train("acme", rows, idempotency_key="mine")
    assert fake.last("CreateJob").idempotency_key == "mine"


async def test_the_async_client_does_the_same(fake: Fake, tmp_path: Path) -> None:
    async with AsyncClient(fake.address, timeout=20) as client:
        assert (await client.generate("hi", n=2)).choices[1].text == "answer 1"
        async with client.stream("hi") as stream:
            assert [c.text async for c in stream] == ["Hel", "lo", ""]
        assert stream.completion.text == "Hello"
        assert (await client.score("a", "b")).total == -1.5
        assert (await client.tokenize("hi")).text == "ab"
        assert (await client.info()).version == "9.9"
        assert await client.health() == "SERVING"
        assert [a.name for a in await client.adapters.list()] == ["acme", "birch", "cedar"]
        files = peft_folder(tmp_path / "a")
        assert (await client.adapters.upload("acme", tmp_path / "a")).ref == "acme@1"
        assert fake.uploaded["adapter_model.safetensors"] == files["adapter_model.safetensors"]
        assert (await client.adapters.download("acme", tmp_path / "b")).ref == "acme@2"
        assert (await client.datasets.validate([{"text": "a"}])).rows == 5
        assert (await client.train("acme", [{"text": "a"}], rank=2)).id == "job-1"
        assert fake.last("CreateJob").settings.rank == 2
        assert [j.id for j in await client.jobs.list(states=["running"])] == ["job-1"]
        with pytest.raises(loramux.InvalidArgument):
            await client.generate()


async def test_cancelling_a_task_cancels_its_call(fake: Fake) -> None:
    fake.handlers["Generate"] = endless
    started = asyncio.Event()

    async def read(client: AsyncClient) -> None:
        async for _ in client.stream("hi"):
            started.set()

    async with AsyncClient(fake.address) as client:
        task = asyncio.create_task(read(client))
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(fake.cancelled.wait, 10)


async def test_leaving_an_async_stream_cancels_the_call(fake: Fake) -> None:
    fake.handlers["Generate"] = endless
    async with AsyncClient(fake.address) as client:
        async for _ in client.stream("hi"):
            break
        gc.collect()
        assert await asyncio.to_thread(fake.cancelled.wait, 10)
