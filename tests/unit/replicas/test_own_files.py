"""Replicas that share no folder with the front: what crosses by way of the blobs, and what is checked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from loramux_server.core.backend import EngineInfo, ProfileCommand, ProfileResult
from loramux_server.core.errors import DAMAGED, Code, Error
from loramux_server.core.jobs import RowsFile, TrainCommand, TrainEvent, TrainEventType, TrainSpec
from loramux_server.core.settings import EngineSettings
from loramux_server.core.types import AdapterVersion
from loramux_server.engine.transport.client import EngineClient
from loramux_server.engine.transport.protocol import Command, LoadCommand, Output
from loramux_server.replicas.files.front import FrontFiles
from loramux_server.replicas.files.host import HostFiles
from loramux_server.replicas.files.own import Crossing, OwnFiles
from loramux_server.store.blobs.reader import BlobReader
from loramux_server.store.store import Store
from tests.unit.services.fakes import engine_info

WEIGHTS = "adapter_model.safetensors"


class Engine(EngineClient):
    """Does with a command's paths what it is told to, in place of an engine."""

    def __init__(self, act: Callable[[Command], AsyncGenerator[Output]]) -> None:
        self._act = act

    def outputs(self, command: Command) -> AsyncGenerator[Output]:
        return self._act(command)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """A front's store whose blobs are elsewhere."""
    import fsspec

    monkeypatch.setitem(fsspec.config.conf, "file", {"auto_mkdir": True})
    with closing(Store.open(tmp_path / "front", None, f"dir::file://{tmp_path}/bucket", engine_here=False)) as store:
        yield store


@pytest.fixture
def own(store: Store, tmp_path: Path) -> OwnFiles:
    return OwnFiles(str(tmp_path / "host"), f"dir::file://{tmp_path}/bucket", store.database.identity, 1 << 30)


def adapter(store: Store, folder: Path) -> AdapterVersion:
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    (folder / WEIGHTS).write_bytes(b"weights")
    return AdapterVersion("acme", 1, store.blobs.put_folder(folder).digest, 4)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write(path: str, data: bytes) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(data)


def read(path: str) -> bytes:
    return Path(path).read_bytes()


async def all_of(host: HostFiles, engine: Engine, command: Command, files: tuple[Crossing, ...] = ()) -> list[object]:
    return [each async for each in host.outputs(engine, command, files)]


async def test_an_adapter_is_fetched_once_and_again_when_the_copy_is_damaged(
    store: Store, own: OwnFiles, tmp_path: Path
) -> None:
    version, host = adapter(store, tmp_path / "a"), HostFiles(own)
    reader = BlobReader(Path(host.engine(EngineSettings()).blobs))
    assert not names(reader.folder), "nothing is fetched before it is needed"

    async def load(command: Command) -> AsyncGenerator[Output]:
        assert bytes(reader.read(version.digest)[WEIGHTS]) == b"weights"
        yield Output("1", done=True)

    command = LoadCommand("1", version)
    assert await all_of(host, Engine(load), command) == [Output("1", done=True)]
    # Another replica of the host has a place of its own, and takes this one's when it is free.
    assert Path(host.engine(EngineSettings()).state_dir).name == "replica-0"
    assert Path(HostFiles(own).engine(EngineSettings()).state_dir).name == "replica-1"
    (reader.folder / version.digest / WEIGHTS).write_bytes(b"damaged")
    with pytest.raises(Error) as damaged:
        await all_of(host, Engine(load), command)
    assert damaged.value.reason == DAMAGED
    assert await all_of(host, Engine(load), command) == [Output("1", done=True)]


async def test_an_adapter_that_is_gone_is_told(store: Store, own: OwnFiles) -> None:
    async def never(command: Command) -> AsyncGenerator[Output]:
        raise AssertionError(command)
        yield

    with pytest.raises(Error) as gone:
        await all_of(HostFiles(own), Engine(never), LoadCommand("1", AdapterVersion("acme", 1, "d" * 64, 4)))
    assert gone.value.code is Code.DATA_LOSS


async def test_rows_checkpoints_and_results_cross(store: Store, own: OwnFiles, tmp_path: Path) -> None:
    place = store.state.job_folder("job-1")
    (place / "rows-1.bin").write_bytes(b"rows")
    for step in (1, 2):
        folder = place / f"step-{step:08}"
        folder.mkdir()
        (folder / "record.json").write_text(str(step))
    output = store.state.new_tmp("job") / "adapter"
    command = TrainCommand(
        "job-1", TrainSpec(), RowsFile("job-1/rows-1.bin", "0" * 64), output=str(output), checkpoint_dir=str(place)
    )
    front, host = FrontFiles(store), HostFiles(own)
    seen: list[TrainCommand] = []

    async def train(command: Command) -> AsyncGenerator[Output]:
        assert isinstance(command, TrainCommand)
        seen.append(command)
        here = command.checkpoint_dir
        assert read(f"{here}/../{command.rows.path}") == b"rows"
        assert read(f"{here}/step-00000002/record.json") == b"2"
        write(f"{here}/step-00000003/record.json", b"3")
        yield Output("job-1", TrainEvent(TrainEventType.CHECKPOINT, "", None, 3, 4))
        write(f"{command.output}/{WEIGHTS}", b"trained")
        yield Output("job-1", done=True)

    found = await all_of(host, Engine(train), command, front.send(command))
    kinds = [each.name if isinstance(each, Crossing) else "output" for each in found]
    assert kinds == ["step-00000003", "output", "result", "output"], "files come before the output that tells of them"
    for each in found:
        if isinstance(each, Crossing):
            await asyncio.to_thread(front.take, command, each)
    assert (output / WEIGHTS).read_bytes() == b"trained"
    assert names(place) == ["rows-1.bin", "step-00000002", "step-00000003"]
    (ended,) = seen
    assert Path(ended.checkpoint_dir).name not in names(Path(host.engine(EngineSettings()).state_dir) / "jobs")
    # The job was cancelled meanwhile: nothing comes back to life.
    store.state.drop_job_folder("job-1")
    front.take(command, Crossing("step-00000003", next(c.digest for c in found if isinstance(c, Crossing))))
    assert not place.exists()


async def test_a_profile_and_the_texts_of_the_base_cross(store: Store, own: OwnFiles, tmp_path: Path) -> None:
    front, host = FrontFiles(store), HostFiles(own)

    async def record(command: Command) -> AsyncGenerator[Output]:
        assert isinstance(command, ProfileCommand)
        write(command.output, b"profile")
        yield Output("1", ProfileResult(1), done=True)

    command = ProfileCommand("1", 1.0, str(tmp_path / "profile.json"), 100, False)
    crossing, _ = await all_of(host, Engine(record), command)
    assert isinstance(crossing, Crossing)
    front.take(command, crossing)
    assert (tmp_path / "profile.json").read_bytes() == b"profile"

    base = tmp_path / "base"
    base.mkdir()
    for name in ("tokenizer.json", "model.safetensors"):
        (base / name).write_text(name)
    info: EngineInfo = front.with_texts(engine_info(64), host.texts(str(base)))
    assert names(Path(info.tokenizer_path)) == ["tokenizer.json"]
