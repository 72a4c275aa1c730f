"""Stored files that were damaged: told by DATA_LOSS that names them, marked, counted, and healed by the same files."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem

from loramux_server.core.backend import EngineInfo, GenerateCommand, TokenEvent
from loramux_server.core.callers.principal import LOCAL
from loramux_server.core.compose import ComposeCommand, ComposeResult
from loramux_server.core.errors import Code, Error
from loramux_server.core.jobs import JobRequest, JobState, TrainCommand, TrainEvent, TrainSpec
from loramux_server.core.types import AdapterVersion, StackItem
from loramux_server.data.rows_file import discard_rows
from loramux_server.peft.schema import check_files
from loramux_server.services.adapters.checked_backend import CheckedBackend, stacked
from loramux_server.services.adapters.service import AdapterService
from loramux_server.services.adapters.types import ComposeRequest
from loramux_server.services.common.context import Context
from loramux_server.services.common.limits import Limits
from loramux_server.services.inference.service import GenerationService
from loramux_server.services.inference.types import GenerateRequest
from loramux_server.services.jobs.board import JobBoard
from loramux_server.services.jobs.running.runner import JobRunner
from loramux_server.services.jobs.service import TrainingService
from loramux_server.store.blobs.reader import BlobReader
from loramux_server.store.blobs.remote import RemoteBlobs
from loramux_server.store.records import VersionState
from loramux_server.store.store import Store
from loramux_server.text import TextTokenizer
from tests.damage import HARMS, cut, flip_bit, lose
from tests.examples import few

from .adapter_files import CONFIG, WEIGHTS, config_bytes, weights_bytes
from .fakes import FakeBackend, Script
from .scripted_training import ScriptedTraining
from .test_adapters import pieces
from .test_training_jobs import Server

Harm = Callable[[Path], None]
CARD = "README.md"


@dataclass
class ReadingBackend(FakeBackend):
    """Reads the files of what is not resident, as the engine does, and stays with what it has."""

    blobs: BlobReader = field(kw_only=True)
    resident: set[str] = field(default_factory=set)

    def read(self, *versions: AdapterVersion) -> None:
        for version in versions:
            if version.digest not in self.resident:
                check_files(self.blobs.read(version.digest), self.info.linear_modules)
                self.resident.add(version.digest)

    async def load(self, adapter: AdapterVersion) -> None:
        self.read(adapter)

    async def generate(self, command: GenerateCommand) -> AsyncIterator[TokenEvent]:
        self.read(*stacked(command.stack))
        async for event in super().generate(command):
            yield event

    async def train(self, command: TrainCommand) -> AsyncIterator[TrainEvent]:
        self.resident.clear()  # a job reads for itself
        self.read(*([command.init] if command.init else []), *stacked(*command.stacks))
        async for event in super().train(command):
            yield event


@dataclass
class Rig:
    """The services over one store, as the app puts them together."""

    store: Store
    backend: ReadingBackend
    adapters: AdapterService
    generation: GenerationService
    found: list[str]
    files: dict[str, bytes]

    async def upload(self, name: str = "acme") -> AdapterVersion:
        version = await self.adapters.upload(name, pieces(self.files), LOCAL)
        return self.store.adapters.resolve(version.ref, "default")

    async def ask(self, name: str = "acme") -> str:
        request = GenerateRequest(prompt="the", adapters=(StackItem(name),), principal=LOCAL)
        return (await self.generation.generate_once(request)).choices[0].text

    async def refused(self, name: str = "acme") -> Error:
        with pytest.raises(Error) as caught:
            await self.ask(name)
        return caught.value

    def forget(self) -> None:
        """As a restart, or an eviction: what is asked for next is read from the disk."""
        self.backend.resident.clear()

    def place(self, version: AdapterVersion) -> Path:
        """Where the files of a version are."""
        return self.store.blobs.local_path(version.digest)

    def state(self, ref: str) -> VersionState:
        return self.store.adapters.get_version(ref, "default").state


def rig_over(store: Store, info: EngineInfo, text: TextTokenizer) -> Rig:
    found: list[str] = []
    store.damage.listener = found.append
    backend = ReadingBackend(info, script=lambda _: Script((5, 6)), blobs=store.blobs.reader)
    checked = CheckedBackend(backend, store.adapters.files)

    async def compose(command: ComposeCommand) -> ComposeResult:
        for version in stacked(command.stack):
            check_files(store.blobs.reader.read(version.digest), info.linear_modules)
        raise AssertionError("nothing damaged was found")

    context = Context(store, text, info, Limits(), checked)
    files = {CONFIG: config_bytes(), WEIGHTS: weights_bytes(info), CARD: b"# mine"}
    adapters = AdapterService(context, compose)
    return Rig(store, backend, adapters, GenerationService(context), found, files)


@pytest.fixture
def rig(store: Store, info: EngineInfo, text: TextTokenizer) -> Rig:
    return rig_over(store, info, text)


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG])
@pytest.mark.parametrize("harm", few(HARMS.values()), ids=HARMS)
async def test_field_02_damaged_adapter_is_data_loss_and_quarantined(rig: Rig, harm: Harm, name: str) -> None:
    version = await rig.upload()
    await rig.upload("twin")  # the same content
    rig.files[CARD] = b"# another"
    await rig.upload("other")
    harm(rig.place(version) / name)
    assert await rig.ask()  # what is resident goes on
    rig.forget()
    error = await rig.refused()
    assert error.code is Code.DATA_LOSS
    for word in ("acme@1", name, "upload"):
        assert word in error.message
    assert [rig.state(ref) for ref in ("acme@1", "twin@1", "other@1")] == ["quarantined", "quarantined", "ready"]
    assert name in rig.store.adapters.get_version("acme@1", "default").reason
    assert (await rig.adapters.list(LOCAL)).items[0].current.state == "quarantined"  # type: ignore[union-attr]
    assert rig.found == ["adapter"]
    assert await rig.ask("other")
    assert (await rig.refused("twin")).code is Code.DATA_LOSS
    assert rig.found == ["adapter"]


def not_finite() -> Error:
    return Error(Code.FAILED_PRECONDITION, "the logits are not finite", reason="LOGITS_NOT_FINITE")


async def test_field_18_a_version_whose_logits_are_not_finite_is_quarantined(rig: Rig, info: EngineInfo) -> None:
    """Published before there was a trial, say: it fails once and never again, and its neighbours go on."""
    await rig.upload("good")
    rig.files[WEIGHTS] = weights_bytes(info, b=0.25)
    bad = await rig.upload("bad")
    rig.backend.not_finite.add(bad.digest)
    rig.backend.script = lambda command: Script(raises=not_finite() if command.stack else None)
    both = GenerateRequest(prompt="the", adapters=(StackItem("good"), StackItem("bad")), principal=LOCAL)
    with pytest.raises(Error) as caught:
        await rig.generation.generate_once(both)
    assert (caught.value.code, caught.value.reason) == (Code.FAILED_PRECONDITION, "LOGITS_NOT_FINITE")
    assert (rig.state("good@1"), rig.state("bad@1")) == (VersionState.READY, VersionState.QUARANTINED)
    error = await rig.refused("bad")
    assert (error.code, error.reason) == (Code.FAILED_PRECONDITION, "ADAPTER_NOT_READY")
    assert "too large" in error.message


async def test_field_18_weights_of_a_request_that_are_too_large_blame_no_version(rig: Rig) -> None:
    """Alone at weight 1 it is fine: the request fails, and nobody else notices."""
    await rig.upload("good")
    rig.backend.script = lambda _: Script(raises=not_finite())
    assert (await rig.refused("good")).reason == "LOGITS_NOT_FINITE"
    assert rig.state("good@1") is VersionState.READY


@pytest.mark.parametrize("harm", few(HARMS.values()), ids=HARMS)
async def test_field_02_the_same_content_heals(rig: Rig, harm: Harm) -> None:
    version = await rig.upload()
    await rig.upload("twin")
    harm(rig.place(version) / WEIGHTS)
    rig.forget()
    await rig.refused()
    await rig.upload()
    rig.forget()
    assert await rig.ask("acme@1")
    assert await rig.ask("twin@1")
    assert rig.state("twin@1") is VersionState.READY


async def download(rig: Rig, ref: str = "acme") -> tuple[dict[str, bytes], tuple[str, ...]]:
    found = await rig.adapters.download(ref, LOCAL)
    data: dict[str, bytes] = {}
    async for name, piece in found.chunks:
        data[name] = data.get(name, b"") + piece
    return data, found.lost


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG])
@pytest.mark.parametrize("harm", few(HARMS.values()), ids=HARMS)
async def test_field_02_damaged_adapter_is_not_sent(rig: Rig, harm: Harm, name: str) -> None:
    version = await rig.upload()
    assert (await download(rig))[0] == rig.files
    harm(rig.place(version) / name)
    with pytest.raises(Error, match="acme@1") as caught:
        await download(rig)
    assert caught.value.code is Code.DATA_LOSS
    assert rig.state("acme@1") is VersionState.QUARANTINED


@pytest.mark.parametrize("harm", few(HARMS.values()), ids=HARMS)
async def test_field_02_damage_during_a_download_ends_it_before_the_file_is_whole(rig: Rig, harm: Harm) -> None:
    version = await rig.upload()
    found = await rig.adapters.download("acme", LOCAL)  # all was well when it began
    harm(rig.place(version) / WEIGHTS)
    sent: dict[str, int] = {}

    async def receive() -> None:
        async for name, piece in found.chunks:
            sent[name] = sent.get(name, 0) + len(piece)

    with pytest.raises(Error) as caught:
        await receive()
    assert caught.value.code is Code.DATA_LOSS
    assert sent.get(WEIGHTS, 0) < len(rig.files[WEIGHTS])
    assert rig.state("acme@1") is VersionState.QUARANTINED


@pytest.mark.parametrize("harm", few(HARMS.values()), ids=HARMS)
async def test_field_02_a_lost_card_is_told_and_changes_no_answer(rig: Rig, harm: Harm) -> None:
    version = await rig.upload()
    harm(rig.place(version) / CARD)
    rig.forget()
    assert await rig.ask()
    data, lost = await download(rig)
    assert lost == (CARD,)
    assert data == {name: rig.files[name] for name in (CONFIG, WEIGHTS)}
    assert rig.state("acme@1") is VersionState.READY


@pytest.mark.parametrize("harm", few(HARMS.values()), ids=HARMS)
async def test_field_02_a_damaged_list_of_files_is_made_again(rig: Rig, harm: Harm) -> None:
    version = await rig.upload()
    manifest = rig.store.state.path / "blobs" / "manifests" / version.digest[:2] / version.digest
    kept = manifest.read_bytes()
    harm(manifest)
    rig.store.blobs.entries.cache_clear()
    rig.forget()
    assert await rig.ask()
    assert manifest.read_bytes() == kept


async def test_field_02_a_folder_that_is_gone_is_quarantined_when_it_is_named(rig: Rig) -> None:
    version = await rig.upload()
    shutil.rmtree(rig.place(version))
    assert (await rig.refused()).code is Code.DATA_LOSS
    assert rig.state("acme@1") is VersionState.QUARANTINED


async def test_field_02_damaged_donors_and_sources_are_data_loss(rig: Rig) -> None:
    version = await rig.upload()
    flip_bit(rig.place(version) / WEIGHTS)
    with pytest.raises(Error, match="acme@1") as caught:
        await rig.adapters.compose(ComposeRequest("merged", (StackItem("acme"),), principal=LOCAL))
    assert caught.value.code is Code.DATA_LOSS
    assert rig.state("acme@1") is VersionState.QUARANTINED


@pytest.mark.parametrize("use", ["init_from", "on_top_of"])
async def test_field_02_a_job_on_a_damaged_donor_fails_with_its_name(rig: Rig, text: TextTokenizer, use: str) -> None:
    version = await rig.upload("below")
    server = server_of(rig, text)
    spec = TrainSpec(rank=2, alpha=4.0, target_modules=("q_proj",))
    given = {"init_from": "below", "spec": spec} if use == "init_from" else {"on_top_of": ((StackItem("below"),),)}
    job = await server.job(**given)
    flip_bit(rig.place(version) / WEIGHTS)
    async with server.working():
        await server.finished(job)
    failed = await server.service.get_job(job.id, LOCAL)
    assert failed.state is JobState.FAILED
    assert "below@1" in failed.error
    assert WEIGHTS in failed.error
    assert rig.state("below@1") is VersionState.QUARANTINED


def server_of(rig: Rig, text: TextTokenizer) -> Server:
    """Training over the rig's store and engine."""
    server = Server.over(rig.store, text, rig.backend.info)
    rig.backend.training = server.training = ScriptedTraining(rig.backend.info)
    board = JobBoard(rig.store)
    checked = CheckedBackend(rig.backend, rig.store.adapters.files)
    server.context = context = replace(server.context, backend=checked)
    server.service = TrainingService(context, board)
    server.runner = JobRunner(context, board)
    return server


@pytest.mark.parametrize("harm", few(HARMS.values()), ids=HARMS)
async def test_field_02_a_damaged_dataset_fails_the_job_and_heals(rig: Rig, text: TextTokenizer, harm: Harm) -> None:
    """Where its rows have to be read again."""
    server = server_of(rig, text)
    job = await server.job()
    discard_rows(rig.store.state.jobs / job.id)
    dataset = rig.store.jobs.get(job.id).request.dataset_id
    harm(rig.store.blobs.local_path(rig.store.datasets.get(dataset, "default").digest))
    async with server.working():
        await server.finished(job)
        failed = await server.service.get_job(job.id, LOCAL)
        assert failed.state is JobState.FAILED
        assert dataset in failed.error
        assert "upload" in failed.error
        assert "dataset" in rig.found
        with pytest.raises(Error) as caught:
            await server.service.create_job(JobRequest(name="again", dataset_id=dataset, tenant="default"), LOCAL)
        assert caught.value.code is Code.DATA_LOSS
        await server.dataset()  # the same rows
        await server.service.resume_job(job.id, LOCAL)
        await server.finished(job)
    assert (await server.service.get_job(job.id, LOCAL)).state is JobState.SUCCEEDED


@pytest.mark.parametrize("harm", [flip_bit, cut, lose])
async def test_field_02_a_damaged_copy_of_a_remote_adapter_is_fetched_again(
    tmp_path: Path, info: EngineInfo, text: TextTokenizer, harm: Harm
) -> None:
    store = Store.open(tmp_path / "state")
    (tmp_path / "remote").mkdir()
    (tmp_path / "cache").mkdir()
    fs = DirFileSystem(str(tmp_path / "remote"), LocalFileSystem(auto_mkdir=True))
    blobs = RemoteBlobs(fs, "", tmp_path / "cache", 1 << 20)
    for holder in (store, store.adapters, store.adapters.files, store.datasets):
        setattr(holder, "blobs" if holder is store else "_blobs", blobs)
    rig = rig_over(store, info, text)
    version = await rig.upload()
    copy = rig.place(version)
    harm(copy / WEIGHTS)
    rig.forget()
    assert await rig.ask()
    assert (copy / WEIGHTS).read_bytes() == rig.files[WEIGHTS]
    assert rig.state("acme@1") is VersionState.READY
    harm(copy / WEIGHTS)
    assert (await download(rig))[0] == rig.files
    harm(copy / WEIGHTS)
    harm(tmp_path / "remote" / "folders" / version.digest[:2] / version.digest / WEIGHTS)
    rig.forget()
    assert (await rig.refused()).code is Code.DATA_LOSS
    assert rig.state("acme@1") is VersionState.QUARANTINED
    dataset = await server_of(rig, text).dataset()
    digest = store.datasets.get(dataset, "default").digest
    harm(tmp_path / "cache" / digest)
    assert store.datasets.read(digest).count(b"\n")
    store.close()
