"""The front's hold on a child that talks nonsense: that is a crash, and too many of them are the end."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import uvloop

from loramux_server.core.backend import EnginePhase, EngineState
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
    return ProcessBackend(EngineSettings(model=model, state_dir=str(folder)))


@pytest.mark.parametrize("what", GARBAGE)
def test_a_message_that_cannot_be_read_is_a_crash(what: str, tmp_path: Path) -> None:
    """What was asked fails, the child is replaced, and the next question is answered."""

    async def life() -> tuple[list[EnginePhase], int | None, int | None]:
        backend = backend_of(f"once:{what}", tmp_path)
        phases: list[EnginePhase] = []
        again = asyncio.Event()

        def changed(state: EngineState) -> None:
            phases.append(state.phase)
            if phases.count(EnginePhase.READY) == 2:
                again.set()

        backend.subscribe(changed)
        await backend.start()
        try:
            first = backend.link.pid
            with pytest.raises(Error) as failed:
                await backend.stats()
            assert (failed.value.code, failed.value.reason) == (Code.UNAVAILABLE, "ENGINE_RESTARTING")
            await asyncio.wait_for(again.wait(), 60)
            assert (await backend.stats()).running == 5
            return phases, first, backend.link.pid
        finally:
            await backend.close()

    phases, first, second = asyncio.run(life())
    assert phases == [EnginePhase.READY, EnginePhase.RESTARTING, EnginePhase.READY]
    assert first != second
    # What one child cached is keyed by a secret that the next one does not get.
    secrets = (tmp_path / "secrets").read_bytes()
    assert len({secrets[:32], secrets[32:]}) == 2
    assert len(secrets) == 64


def test_a_command_for_a_child_that_is_dying_is_unavailable(tmp_path: Path) -> None:
    """Its connection is closed while nobody has read yet that it ended; uvloop, as servers have it, then raises."""

    async def life() -> Error:
        backend = backend_of("good:", tmp_path)
        await backend.start()
        try:
            assert backend.link._writer is not None
            backend.link._writer.transport.abort()
            with pytest.raises(Error) as failed:
                await backend.stats()
            return failed.value
        finally:
            await backend.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        error = runner.run(life())
    assert (error.code, error.reason) == (Code.UNAVAILABLE, "ENGINE_RESTARTING")


def test_lost_frames_start_the_child_again_and_use_up_no_budget(tmp_path: Path) -> None:
    """Three times, where two crashes are the end: what came down the socket was no fault of the child's."""

    async def life() -> int:
        backend = backend_of("lost:", tmp_path)
        up = asyncio.Event()
        backend.subscribe(lambda state: up.set() if state.phase is EnginePhase.READY else None)
        await backend.start()
        try:
            for _ in range(3):
                up.clear()
                with pytest.raises(Error, match="starting again"):
                    await backend.stats()
                await asyncio.wait_for(up.wait(), 60)
            return (await backend.stats()).running
        finally:
            await backend.close()

    assert asyncio.run(life()) == 5


def test_an_engine_that_is_given_up_says_so(tmp_path: Path) -> None:
    """No caller is asked to try again, and the failure is reported once."""

    async def life() -> tuple[list[EngineState], Error]:
        backend = backend_of("ready:no message", tmp_path)
        states: list[EngineState] = []
        failed = asyncio.Event()

        def changed(state: EngineState) -> None:
            states.append(state)
            if state.phase is EnginePhase.FAILED:
                failed.set()

        backend.subscribe(changed)
        await backend.start()
        try:
            await asyncio.wait_for(failed.wait(), 60)
            with pytest.raises(Error) as refused:
                await backend.stats()
            return states, refused.value
        finally:
            await backend.close()

    states, refused = asyncio.run(life())
    assert [s.phase for s in states].count(EnginePhase.FAILED) == 1
    assert states[-1].error is not None
    for error in (states[-1].error, refused):
        assert (error.code, error.reason, error.retry_after) == (Code.UNAVAILABLE, "ENGINE_FAILED", None)
        assert "Restart the server" in error.message
