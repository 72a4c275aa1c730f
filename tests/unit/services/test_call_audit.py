"""Which calls the audit log has, with what, and when: before they are acknowledged; a flood of refusals is bounded."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from loramux_server.core.call import about
from loramux_server.core.callers.principal import Principal, Scope
from loramux_server.core.errors import Code, Error
from loramux_server.core.observing.observer import CallFinished
from loramux_server.services.access.access import Access, Incoming
from loramux_server.services.access.audit import REFUSALS, WINDOW, CallAudit
from loramux_server.services.access.credentials import Credentials
from loramux_server.services.common.calls import Calls, GenerationLimit, rename
from loramux_server.telemetry.audit import AuditLog, Entry


class Keys:
    """Knows two keys by their text."""

    async def authenticate(self, credentials: Credentials) -> Principal:
        match credentials.authorization:
            case "writer":
                return Principal("acme", frozenset({Scope.WRITE_ADAPTERS, Scope.TRAIN}), "k1")
            case "reader":
                return Principal("acme", frozenset({Scope.INFER}), "k2")
            case _:
                raise Error(Code.UNAUTHENTICATED, "the key is not known")


class Sink:
    def __init__(self) -> None:
        self.ended: list[str] = []

    def call_finished(self, event: CallFinished) -> None:
        self.ended.append(event.code)


class Place:
    """Calls with an audit log, and a clock that is set by hand."""

    def __init__(self, folder: Path) -> None:
        self.log, self.sink, self.now = AuditLog(folder / "audit.jsonl"), Sink(), 0.0
        self.audit = CallAudit(self.log, lambda: self.now)
        self.calls = Calls(self.sink, GenerationLimit(8), Access(Keys()), self.audit)

    async def call(self, path: str, key: str | None, work=None) -> object:
        async def nothing() -> None: ...

        credentials = Credentials(key, peer="ipv4:10.0.0.9:4711")
        return await self.calls.answer(Incoming(f"loramux.v1.{path}", "r1", credentials), work or nothing)

    def entries(self) -> list[Entry]:
        lines = self.log.path.read_bytes().splitlines() if self.log.path.exists() else []
        return [entry for entry in map(Entry.read, lines) if entry is not None]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


async def test_a_change_is_written_down_with_who_and_what_before_it_is_acknowledged(place: Place) -> None:
    async def delete() -> str:
        assert not place.entries()
        about("acme@latest")
        rename("mine")
        about("acme@3", versions="3")
        return "done"

    assert await place.call("AdapterService/DeleteAdapter", "writer", delete) == "done"
    (entry,) = place.entries()
    assert (entry.action, entry.object, entry.outcome, entry.details) == (
        "DeleteAdapter",
        "acme@3",
        "OK",
        {"versions": "3"},
    )
    assert (entry.tenant, entry.key, entry.peer, entry.request_id) == ("acme", "k1", "ipv4:10.0.0.9:4711", "mine")


async def test_what_changes_nothing_is_not_written_down(place: Place) -> None:
    await place.call("InferenceService/GenerateOnce", "reader")
    with pytest.raises(Error):
        await place.call("InferenceService/Score", "reader", _fails(Code.INVALID_ARGUMENT))
    assert not place.entries()


async def test_refusals_and_failures_are_written_down(place: Place) -> None:
    for path, key, work in (
        ("AdapterService/DeleteAdapter", "reader", None),
        ("InferenceService/GenerateOnce", "writer", None),
        ("InferenceService/GenerateOnce", "guessed", None),
        ("TrainingService/CreateJob", None, None),
        ("TrainingService/CreateJob", "writer", _fails(Code.NOT_FOUND)),
        ("TrainingService/CreateJob", "writer", _breaks),
    ):
        with pytest.raises(Error):
            await place.call(path, key, work)
    assert [(e.action, e.outcome, e.tenant, e.key) for e in place.entries()] == [
        ("DeleteAdapter", "PERMISSION_DENIED", "acme", "k2"),
        ("GenerateOnce", "PERMISSION_DENIED", "acme", "k1"),
        ("GenerateOnce", "UNAUTHENTICATED", "", ""),
        ("CreateJob", "UNAUTHENTICATED", "", ""),
        ("CreateJob", "NOT_FOUND", "acme", "k1"),
        ("CreateJob", "INTERNAL", "acme", "k1"),
    ]
    assert place.entries()[0].reason == "SCOPE_MISSING"
    assert b"guessed" not in place.log.path.read_bytes()
    assert b"secret" not in place.log.path.read_bytes()


async def test_a_cancelled_change_is_written_down(place: Place) -> None:
    reached = asyncio.Event()

    async def slow() -> None:
        about("j1")
        reached.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(place.call("TrainingService/CancelJob", "writer", slow))
    await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [(e.object, e.outcome) for e in place.entries()] == [("j1", "CANCELLED")]


async def test_a_flood_of_refusals_neither_fills_the_disk_nor_hides_what_is_done(place: Place) -> None:
    for _ in range(REFUSALS + 500):
        with pytest.raises(Error):
            await place.call("InferenceService/GenerateOnce", None)
    assert len(place.entries()) == REFUSALS
    await place.call("AdapterService/DeleteAdapter", "writer")  # known tenants' are counted apart
    for _ in range(REFUSALS):
        with pytest.raises(Error):
            await place.call("AdapterService/DeleteAdapter", "writer", _fails(Code.NOT_FOUND))
    assert len(place.entries()) == 2 * REFUSALS + 1
    place.now = WINDOW
    with pytest.raises(Error):
        await place.call("InferenceService/GenerateOnce", None)
    told, last = place.entries()[-2:]
    assert (told.action, told.tenant, told.suppressed) == ("refused calls", "", 500)
    assert last.outcome == "UNAUTHENTICATED"


async def test_what_was_left_out_is_told_at_the_end(place: Place) -> None:
    for _ in range(REFUSALS + 5):
        with pytest.raises(Error):
            await place.call("AdapterService/DeleteAdapter", "writer", _fails(Code.NOT_FOUND))
    await place.audit.close()
    await place.audit.close()
    assert [(e.tenant, e.suppressed) for e in place.entries()][-2:] == [("acme", 0), ("acme", 5)]


async def test_a_change_that_cannot_be_written_down_is_not_acknowledged(place: Place) -> None:
    place.log.path.symlink_to("/dev/full")
    with pytest.raises(Error) as refused:
        await place.call("AdapterService/SetAlias", "writer")
    with pytest.raises(Error) as failed:
        await place.call("AdapterService/SetAlias", "writer", _fails(Code.NOT_FOUND))
    await place.call("InferenceService/GenerateOnce", "reader")
    assert refused.value.reason == "STORAGE_FULL"
    assert failed.value.code is Code.NOT_FOUND
    assert place.sink.ended == ["RESOURCE_EXHAUSTED", "NOT_FOUND", "OK"]


def _fails(code: Code):
    async def work() -> None:
        raise Error(code, "a secret sentence")

    return work


async def _breaks() -> None:
    raise KeyError("a secret path")
