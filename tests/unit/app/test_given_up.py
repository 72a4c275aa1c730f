"""A server whose engine is given up ends, with the reason, after closing what it holds."""

from __future__ import annotations

import asyncio

import pytest

import loramux_server.app
from loramux_server.__main__ import _serve
from loramux_server.app.announce import Silent
from loramux_server.app.app import App
from loramux_server.config import Settings
from loramux_server.core.backend import EnginePhase, EngineState
from loramux_server.core.errors import Code, Error
from loramux_server.engine.transport.process import ProcessBackend
from loramux_server.host.service_manager import ServiceManager
from loramux_server.services.availability import Readiness

LOST = Error(Code.UNAVAILABLE, "the engine died too often", reason="ENGINE_FAILED")


def test_the_process_ends_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = []

    class Losing(App):
        async def start(self) -> None:
            backend = ProcessBackend(self.settings.engine())
            backend.subscribe(self._engine_changed)
            asyncio.get_running_loop().call_soon(backend.report, EngineState(EnginePhase.FAILED, error=LOST))

        async def stop(self) -> None:
            with pytest.raises(Error) as refused:
                self.availability.open()
            closed.append((refused.value, self.readiness))

    monkeypatch.setattr(loramux_server.app, "App", Losing)
    with pytest.raises(Error) as ended:
        asyncio.run(asyncio.wait_for(_serve(Settings(), Silent(), ServiceManager()), 60))
    assert ended.value is LOST
    assert closed == [(LOST, Readiness.FAILED)]
