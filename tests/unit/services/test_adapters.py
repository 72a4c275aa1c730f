"""Adapters in and out, listed, moved and deleted, with the real store."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import threading
from collections.abc import AsyncIterator, Iterable
from dataclasses import replace

import pytest

from loramux_server.core.backend import EngineInfo
from loramux_server.core.callers.principal import LOCAL
from loramux_server.core.errors import Code, Error
from loramux_server.core.types import AdapterVersion, StackItem
from loramux_server.services.adapters.collector import Collector
from loramux_server.services.adapters.service import AdapterService
from loramux_server.services.adapters.views import same_base
from loramux_server.services.common.context import Context
from loramux_server.services.common.limits import Limits
from loramux_server.services.common.stacks import StackResolver
from loramux_server.services.common.types import FileSpec
from loramux_server.store.store import Store

from .adapter_files import CONFIG, WEIGHTS, config_bytes, weights_bytes
from .fakes import FakeBackend, caller

Files = dict[str, bytes]


@pytest.fixture
def service(context: Context) -> AdapterService:
    return AdapterService(context)


@pytest.fixture
def files(info: EngineInfo) -> Files:
    return {CONFIG: config_bytes(), WEIGHTS: weights_bytes(info), "README.md": b"# mine"}


async def pieces(files: Files | Iterable[tuple[str, bytes]], size: int = 700) -> AsyncIterator[tuple[str, bytes]]:
    for name, data in files.items() if isinstance(files, dict) else files:
        for at in range(0, max(len(data), 1), size):
            yield name, data[at : at + size]


def specs(files: Files) -> tuple[FileSpec, ...]:
    return tuple(FileSpec(name, len(data), hashlib.sha256(data).hexdigest()) for name, data in files.items())


def nothing_left(store: Store) -> bool:
    return not any(store.state.tmp.iterdir()) and store.adapters.list("default")[0] == ()


async def test_what_goes_in_comes_out(service: AdapterService, files: Files, info: EngineInfo) -> None:
    version = await service.upload("acme", pieces(files), LOCAL, files=specs(files), metadata={"who": "me"})
    assert (version.ref, version.meta.rank, version.meta.alpha) == ("acme@1", 2, 4.0)
    assert version.meta.target_modules == ("q_proj",)
    assert version.meta.metadata == {"who": "me"}
    assert version.base_name == "somewhere/base"
    assert not version.rslora
    download = await service.download("acme", LOCAL)
    assert download.files == tuple(sorted(specs(files), key=lambda f: f.name))
    found: Files = {}
    async for name, data in download.chunks:
        found[name] = found.get(name, b"") + data
    assert found == files


async def test_an_upload_is_loaded_before_anybody_sees_it(
    service: AdapterService, files: Files, backend: FakeBackend, store: Store
) -> None:
    def look(adapter: AdapterVersion) -> None:
        assert WEIGHTS in store.blobs.reader.read(adapter.digest)
        assert store.adapters.list("default")[0] == ()

    backend.on_load = look
    version = await service.upload("acme", pieces(files), LOCAL)
    assert [a.digest for a in backend.loaded] == [version.digest]
    assert version.tier == "device"


async def test_what_the_engine_refuses_was_never_there(
    service: AdapterService, files: Files, backend: FakeBackend, store: Store
) -> None:
    backend.load_error = Error(Code.INVALID_ARGUMENT, "tensor x holds NaN")
    with pytest.raises(Error, match="NaN"):
        await service.upload("acme", pieces(files), LOCAL)
    assert nothing_left(store)
    assert store.collect_orphans() != ()


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({WEIGHTS: b""}, Code.INVALID_ARGUMENT),
        ({WEIGHTS: b"PK\x03\x04 zip"}, Code.INVALID_ARGUMENT),
        ({CONFIG: b"[]"}, Code.INVALID_ARGUMENT),
        ({CONFIG: config_bytes(rank=4)}, Code.INVALID_ARGUMENT),
        ({CONFIG: config_bytes(rank=512)}, Code.INVALID_ARGUMENT),
        ({"adapter_model.bin": b"x"}, Code.INVALID_ARGUMENT),
        ({"../x": b"x"}, Code.INVALID_ARGUMENT),
        ({"/etc/x": b"x"}, Code.INVALID_ARGUMENT),
        ({"": b"x"}, Code.INVALID_ARGUMENT),
    ],
)
async def test_bad_folders_leave_nothing(
    service: AdapterService, files: Files, store: Store, change: Files, code: Code
) -> None:
    with pytest.raises(Error) as caught:
        await service.upload("acme", pieces({**files, **change}), LOCAL)
    assert caught.value.code is code
    assert nothing_left(store)


async def test_field_18_weights_too_large_to_compute_with_are_never_published(
    service: AdapterService, files: Files, backend: FakeBackend, store: Store
) -> None:
    """They are finite, and still no request could be answered with them."""
    backend.on_load = lambda version: backend.not_finite.add(version.digest)
    with pytest.raises(Error) as caught:
        await service.upload("acme", pieces(files), LOCAL)
    assert (caught.value.code, caught.value.reason) == (Code.INVALID_ARGUMENT, "LOGITS_NOT_FINITE")
    assert nothing_left(store)


async def test_another_bases_adapter_is_refused(service: AdapterService, files: Files, info: EngineInfo) -> None:
    files[WEIGHTS] = weights_bytes(info, fingerprint="another")
    with pytest.raises(Error) as caught:
        await service.upload("acme", pieces(files), LOCAL)
    assert caught.value.code is Code.FAILED_PRECONDITION


async def test_what_was_announced_must_come(service: AdapterService, files: Files, store: Store) -> None:
    wrong_hash = (*specs(files)[:-1], FileSpec("README.md", 6, "0" * 64))
    wrong_size = (*specs(files)[:-1], FileSpec("README.md", 5))
    without_readme = {name: data for name, data in files.items() if name != "README.md"}
    for announced, sent in ((wrong_hash, files), (wrong_size, files), (specs(files), without_readme)):
        with pytest.raises(Error) as caught:
            await service.upload("acme", pieces(sent), LOCAL, files=announced)
        assert [v.field for v in caught.value.violations] == ["header.files"]
    with pytest.raises(Error, match=r"not in header\.files"):
        await service.upload("acme", pieces(files), LOCAL, files=specs(without_readme))
    split = [(CONFIG, b"{"), (WEIGHTS, b"x"), (CONFIG, b"}")]
    with pytest.raises(Error, match="comes again"):
        await service.upload("acme", pieces(split), LOCAL)
    assert nothing_left(store)


async def test_field_17_an_upload_ends_at_the_first_byte_that_was_not_announced(
    service: AdapterService, files: Files, store: Store
) -> None:
    """Of 300 MiB that follow an announcement of a thousand bytes, nothing past the first piece is taken."""
    sent = 0

    async def endless() -> AsyncIterator[tuple[str, bytes]]:
        nonlocal sent
        yield CONFIG, files[CONFIG]
        for _ in range(300):
            sent += 1
            yield WEIGHTS, b"x" * (1 << 20)

    announced = (FileSpec(CONFIG, len(files[CONFIG])), FileSpec(WEIGHTS, 1000))
    with pytest.raises(Error, match="says 1000 bytes") as caught:
        await service.upload("acme", endless(), LOCAL, files=announced)
    assert [v.field for v in caught.value.violations] == ["header.files"]
    assert sent == 1
    assert nothing_left(store)


async def test_field_23_no_adapter_takes_a_word_of_the_servers_own(
    service: AdapterService, files: Files, store: Store
) -> None:
    """``base`` is the bare base in metrics, and in requests of other doors."""
    with pytest.raises(Error) as caught:
        await service.upload("base", pieces(files), LOCAL)
    assert (caught.value.code, caught.value.violations[0].field) == (Code.INVALID_ARGUMENT, "name")
    assert nothing_left(store)
    assert (await service.upload("base-2", pieces(files), LOCAL)).ref == "base-2@1"


async def test_field_26_an_adapter_that_changes_nothing_comes_with_a_warning(
    service: AdapterService, files: Files, info: EngineInfo, store: Store
) -> None:
    for half in "AB":
        files[WEIGHTS] = zeroed(weights_bytes(info), f"lora_{half}")
        version = await service.upload(f"none-{half.lower()}", pieces(files), LOCAL)
        assert [w for w in version.warnings if "changes nothing" in w]
        found = await service.get(version.ref, LOCAL)
        assert found.versions[0].warnings == version.warnings
    files[WEIGHTS] = zeroed(weights_bytes(info), "lora_X")
    version = await service.upload("some", pieces(files), LOCAL)
    assert not [w for w in version.warnings if "changes nothing" in w]


async def test_field_26_an_adapter_that_names_another_base_comes_with_a_warning(
    context: Context, info: EngineInfo, files: Files
) -> None:
    """The shapes fit, so it is taken; what it was trained on is told where people look."""
    service = AdapterService(replace(context, info=replace(info, base_name="Qwen/Qwen3-8B")))
    version = await service.upload("acme", pieces(files), LOCAL)
    assert "somewhere/base" in version.warnings[0]
    assert "Qwen/Qwen3-8B" in version.warnings[0]
    listed = (await service.list(LOCAL)).items[0].current
    assert listed is not None
    assert listed.warnings == version.warnings
    assert not listed.for_other_base


async def test_field_26_what_the_present_base_cannot_use_is_marked(
    context: Context, info: EngineInfo, files: Files
) -> None:
    files[WEIGHTS] = weights_bytes(info, fingerprint=info.base_fingerprint)
    before = await AdapterService(context).upload("acme", pieces(files), LOCAL)
    assert (before.for_other_base, before.warnings) == (False, ())
    later = AdapterService(replace(context, info=replace(info, base_fingerprint="of another base")))
    listed = (await later.list(LOCAL)).items[0].current
    assert listed is not None
    assert listed.for_other_base
    assert "cannot be used" in listed.warnings[0]


@pytest.mark.parametrize(
    ("theirs", "ours", "same"),
    [
        ("Qwen/Qwen3-8B", "Qwen/Qwen3-8B", True),
        ("unsloth/qwen3-8b-unsloth-bnb-4bit", "Qwen/Qwen3-8B", True),
        ("/models/Qwen3-8B/", "Qwen/Qwen3-8B", True),
        ("", "Qwen/Qwen3-8B", True),
        ("Qwen/Qwen3-8B-Base", "Qwen/Qwen3-8B", False),
        ("Qwen/Qwen2.5-7B", "Qwen/Qwen3-8B", False),
    ],
)
def test_field_26_names_of_one_model(theirs: str, ours: str, same: bool) -> None:
    assert same_base(theirs, ours) is same


def zeroed(weights: bytes, part: str) -> bytes:
    """A weights file whose tensors with ``part`` in their names are zero, and the others one."""
    length = int.from_bytes(weights[:8], "little")
    data = bytearray(weights)
    for key, entry in json.loads(weights[8 : 8 + length]).items():
        if key != "__metadata__":
            start, end = (8 + length + offset for offset in entry["data_offsets"])
            one = {"F32": b"\x00\x00\x80?", "F16": b"\x00<", "BF16": b"\x80?"}[entry["dtype"]]
            data[start:end] = bytes(end - start) if part in key else one * ((end - start) // len(one))
    return bytes(data)


async def test_an_upload_has_a_limit(
    context: Context, store: Store, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = AdapterService(replace(context, limits=Limits(max_upload_bytes=1000)))
    endless = (("adapter_model.safetensors", b"x" * 300) for _ in itertools.count())
    with pytest.raises(Error) as caught:
        await service.upload("acme", pieces(endless), LOCAL)
    assert caught.value.code is Code.RESOURCE_EXHAUSTED
    with pytest.raises(Error) as caught:
        await service.upload("acme", pieces(files), LOCAL, files=(FileSpec(WEIGHTS, 10**15),))
    assert caught.value.code is Code.RESOURCE_EXHAUSTED
    assert nothing_left(store)


async def test_an_upload_that_stalls_or_breaks_off_leaves_nothing(
    service: AdapterService, files: Files, store: Store
) -> None:
    async def stalls() -> AsyncIterator[tuple[str, bytes]]:
        yield CONFIG, b"{"
        raise Error(Code.DEADLINE_EXCEEDED, "the door waited long enough")

    with pytest.raises(Error, match="long enough"):
        await service.upload("acme", stalls(), LOCAL)

    async def breaks() -> AsyncIterator[tuple[str, bytes]]:
        yield CONFIG, b"{"
        raise ConnectionError("gone")

    with pytest.raises(ConnectionError):
        await service.upload("acme", breaks(), LOCAL)
    assert nothing_left(store)


async def publish_versions(service: AdapterService, info: EngineInfo, name: str, count: int) -> None:
    for i in range(count):
        files = {CONFIG: config_bytes(), WEIGHTS: weights_bytes(info, b=0.1 * (i + 1))}
        await service.upload(name, pieces(files), LOCAL)


async def test_promote_and_roll_back(service: AdapterService, info: EngineInfo, backend: FakeBackend) -> None:
    await publish_versions(service, info, "acme", 2)
    adapter = await service.get("acme", LOCAL)
    assert adapter.current is not None
    assert adapter.current.ref == "acme@2"
    assert [v.version for v in adapter.versions] == [2, 1]
    backend.loaded.clear()
    adapter = await service.set_alias("acme", 1, LOCAL)
    assert adapter.current is not None
    assert adapter.current.version == 1
    assert [a.ref for a in backend.loaded] == ["acme@1"]
    adapter = await service.set_alias("acme", 2, LOCAL, alias="beta")
    assert adapter.aliases == {"beta": 2}
    assert [v.version for v in (await service.get("acme@beta", LOCAL)).versions] == [2]
    with pytest.raises(Error) as caught:
        await service.set_alias("acme", 9, LOCAL)
    assert caught.value.code is Code.NOT_FOUND
    for version, alias in ((0, ""), (-1, "beta"), (0, "latest")):
        with pytest.raises(Error) as caught:
            await service.set_alias("acme", version, LOCAL, alias=alias)
        assert caught.value.code is Code.INVALID_ARGUMENT
    assert (await service.set_alias("acme", 0, LOCAL, alias="beta")).aliases == {}
    for ref in ("acme@beta", "acme@other"):
        with pytest.raises(Error) as caught:
            await service.set_alias("acme", 0, LOCAL, alias=ref.partition("@")[2])
        assert caught.value.code is Code.NOT_FOUND
    with pytest.raises(Error):
        await service.get("acme@beta", LOCAL)


async def test_an_alias_does_not_move_when_the_engine_refuses(
    service: AdapterService, info: EngineInfo, backend: FakeBackend
) -> None:
    await publish_versions(service, info, "acme", 2)
    backend.load_error = Error(Code.UNAVAILABLE, "gone")
    with pytest.raises(Error):
        await service.set_alias("acme", 1, LOCAL)
    adapter = await service.get("acme", LOCAL)
    assert adapter.current is not None
    assert adapter.current.version == 2


async def test_delete_unloads_what_nobody_else_has(
    service: AdapterService, info: EngineInfo, backend: FakeBackend
) -> None:
    await publish_versions(service, info, "acme", 2)
    await publish_versions(service, info, "twin", 1)
    shared = (await service.get("twin@1", LOCAL)).versions[0].digest
    assert (await service.get("acme@1", LOCAL)).versions[0].digest == shared
    assert await service.delete("acme", LOCAL) == 2
    assert len(backend.unloaded) == 1
    assert shared not in backend.unloaded
    with pytest.raises(Error) as caught:
        await service.get("acme", LOCAL)
    assert caught.value.code is Code.NOT_FOUND


async def test_lists_are_paged_and_filtered(service: AdapterService, info: EngineInfo) -> None:
    for name in ("a1", "b1", "a2", "b2", "a3"):
        await publish_versions(service, info, name, 1)
    found: list[str] = []
    token = ""
    while True:
        page = await service.list(LOCAL, prefix="a", page_size=2, page_token=token)
        found += [a.name for a in page.items]
        token = page.next_page_token
        if not token:
            break
    assert found == ["a1", "a2", "a3"]
    assert (await service.list(caller("other"))).items == ()
    with pytest.raises(Error):
        await service.list(LOCAL, page_size=0)


async def test_pins_are_loaded_again_at_start(service: AdapterService, info: EngineInfo, context: Context) -> None:
    await publish_versions(service, info, "acme", 2)
    pinned = await service.pin("acme@1", LOCAL)
    assert pinned.versions[0].pinned
    again = FakeBackend(info)
    await AdapterService(replace(context, backend=again)).load_pinned()
    assert [a.ref for a in again.loaded] == ["acme@1"]
    assert again.kept == ["acme@1"]
    assert not (await service.unpin("acme@1", LOCAL)).versions[0].pinned


async def test_the_engine_keeps_what_is_pinned_and_nothing_else(
    service: AdapterService, info: EngineInfo, backend: FakeBackend, store: Store
) -> None:
    await publish_versions(service, info, "acme", 3)
    await service.pin("acme@1", LOCAL)
    await service.pin("acme@2", LOCAL)
    assert backend.kept == ["acme@1", "acme@2"]
    backend.most_kept = 2
    with pytest.raises(Error) as caught:
        await service.pin("acme@3", LOCAL)
    assert caught.value.reason == "TOO_MANY_PINNED"
    assert [r.ref for r in store.adapters.pinned()] == ["acme@1", "acme@2"]  # a pin that is not kept is not noted
    await service.unpin("acme@2", LOCAL)
    assert backend.kept == ["acme@1"]
    await service.delete("acme@1", LOCAL)
    assert backend.kept == []


async def test_pins_beyond_the_room_do_not_keep_the_server_down(
    service: AdapterService, info: EngineInfo, context: Context
) -> None:
    await publish_versions(service, info, "acme", 2)
    for version in (1, 2):
        await service.pin(f"acme@{version}", LOCAL)
    small = FakeBackend(info, most_kept=1)
    await AdapterService(replace(context, backend=small)).load_pinned()
    assert small.kept == ["acme@1"]


def rounds_of(store: Store, monkeypatch: pytest.MonkeyPatch) -> asyncio.Queue[tuple[str, ...]]:
    """What each round of the collector removed, as the rounds end; an empty round removed nothing."""
    ended: asyncio.Queue[tuple[str, ...]] = asyncio.Queue()
    loop, collect = asyncio.get_running_loop(), store.collect_orphans

    def counted() -> tuple[str, ...]:
        gone = collect()
        loop.call_soon_threadsafe(ended.put_nowait, gone)
        return gone

    monkeypatch.setattr(store, "collect_orphans", counted)
    return ended


async def test_files_go_when_the_last_request_that_uses_them_ends(
    service: AdapterService, context: Context, info: EngineInfo, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    await publish_versions(service, info, "acme", 1)
    stacks = StackResolver(store)
    stack = await stacks.resolve((StackItem("acme"),), "default")
    rounds = rounds_of(store, monkeypatch)
    collector = asyncio.create_task(Collector(store, context.unused, retry_seconds=0.01).run())
    async with stacks.held(stack), stacks.held(stack):
        await service.delete("acme", LOCAL)
        async with asyncio.timeout(20):
            assert [await rounds.get() for _ in range(5)] == [()] * 5
        assert [*store.blobs.digests()] == [stack.entries[0].adapter.digest]
        with pytest.raises(Error) as caught:
            await stacks.resolve((StackItem("acme"),), "default")
        assert caught.value.code is Code.NOT_FOUND
    async with asyncio.timeout(20):
        while not await rounds.get():
            pass
    assert not any(store.blobs.digests())
    with pytest.raises(Error) as caught:
        async with stacks.held(stack):
            pass
    assert caught.value.code is Code.NOT_FOUND
    assert not store.blobs.in_use(stack.entries[0].adapter.digest)
    collector.cancel()


async def test_the_collector_outlives_a_store_that_fails(
    service: AdapterService, context: Context, info: EngineInfo, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    await publish_versions(service, info, "acme", 1)
    rounds = rounds_of(store, monkeypatch)
    collect = store.collect_orphans
    failed = threading.Event()

    def fail_once() -> tuple[str, ...]:
        monkeypatch.setattr(store, "collect_orphans", collect)
        failed.set()
        raise Error(Code.UNAVAILABLE, "database away")

    monkeypatch.setattr(store, "collect_orphans", fail_once)
    await service.delete("acme", LOCAL)
    collector = asyncio.create_task(Collector(store, context.unused, retry_seconds=0.01).run())
    async with asyncio.timeout(20):
        while not await rounds.get():
            pass
    assert failed.is_set()
    assert not any(store.blobs.digests())
    collector.cancel()


async def test_a_download_of_what_is_deleted_meanwhile_is_whole(
    service: AdapterService, files: Files, store: Store
) -> None:
    await service.upload("acme", pieces(files), LOCAL)
    download = await service.download("acme", LOCAL)
    found: Files = {}
    async for name, data in download.chunks:
        if not found:
            await service.delete("acme", LOCAL)
            assert store.collect_orphans() == ()
        found[name] = found.get(name, b"") + data
    assert found == files
    assert len(store.collect_orphans()) == 1


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
async def test_field_29_a_byte_order_mark_before_the_config(
    encoding: str, service: AdapterService, files: Files
) -> None:
    plain = files[CONFIG]
    await service.upload("marked", pieces({**files, CONFIG: plain.decode().encode(encoding)}), LOCAL)
    download = await service.download("marked@1", LOCAL)
    config = b"".join([data async for name, data in download.chunks if name == CONFIG])
    assert config == plain  # as PEFT reads it
