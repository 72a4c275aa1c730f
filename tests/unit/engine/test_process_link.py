"""The front's hold on a child that talks nonsense: that is a crash, and too many of them are the end."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from loramux_server.core.errors import Code, Error
from loramux_server.core.settings import EngineSettings
from loramux_server.engine.transport import process as process_backend
from loramux_server.engine.transport.process import ProcessBackend
from tests.unit.engine.bad_child import GARBAGE


@pytest.fixture(autouse=True)
def child(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_backend, "MODULE", "tests.unit.engine.bad_child")
    monkeypatch.setattr(process_backend, "CRASHES", 1)


def backend_of(model: str, folder: Path) -> ProcessBackend:
    return ProcessBackend(EngineSettings(model=model, state_dir=str(folder)), lambda step, fraction: None)


@pytest.mark.parametrize("what", GARBAGE)
def test_a_message_that_cannot_be_read_is_a_crash(what: str, tmp_path: Path) -> None:
    """What was asked fails, the child is replaced, and the next question is answered."""

    async def life() -> tuple[list[bool], int | None, int | None]:
        backend = backend_of(f"once:{what}", tmp_path)
        states: list[bool] = []
        up = asyncio.Event()

        def moved(now: bool) -> None:
            states.append(now)
            if now:
                up.set()

        backend.link.on_state = moved
        await backend.start()
        try:
            first = backend.link.pid
            with pytest.raises(Error) as failed:
                await backend.stats()
            assert (failed.value.code, failed.value.reason) == (Code.UNAVAILABLE, "ENGINE_RESTARTING")
            await asyncio.wait_for(up.wait(), 60)
            assert (await backend.stats()).running == 5
            return states, first, backend.link.pid
        finally:
            await backend.close()

    states, first, second = asyncio.run(life())
    assert states == [False, True]
    assert first != second


def test_an_engine_that_is_given_up_says_so(tmp_path: Path) -> None:
    """Nobody is told to try again, health stays down, and whoever runs the front is told once."""

    async def life() -> tuple[list[bool], Error, Error]:
        backend = backend_of("ready:no message", tmp_path)
        states: list[bool] = []
        given_up: asyncio.Future[Error] = asyncio.get_running_loop().create_future()
        backend.link.on_state, backend.link.on_failed = states.append, given_up.set_result
        await backend.start()
        try:
            told = await asyncio.wait_for(given_up, 60)
            with pytest.raises(Error) as refused:
                await backend.stats()
            return states, told, refused.value
        finally:
            await backend.close()

    states, told, refused = asyncio.run(life())
    assert states[-1] is False
    for error in (told, refused):
        assert (error.code, error.reason, error.retry_after) == (Code.UNAVAILABLE, "ENGINE_FAILED", None)
        assert "Restart the server" in error.message
