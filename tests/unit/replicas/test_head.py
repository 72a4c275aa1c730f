"""How long the head of a cluster has been silent, and why."""

from __future__ import annotations

import socket
from threading import Event

import pytest

from loramux_server.core.errors import Code, Error
from loramux_server.replicas import head as module
from loramux_server.replicas.head import PATIENCE_VARIABLE, Head, bearable_seconds, wait_for_head


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_head_is_silent_from_its_last_answer_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ASK_SECONDS", 3600.0)
    clock, faults = Clock(), [RuntimeError("first line\nmore"), None]

    def answer() -> None:
        if (fault := faults.pop(0)) is not None:
            raise fault

    head = Head(answer, clock)
    clock.now += 60
    assert head.silent_seconds == 0.0, "the start may take long"
    head.start()
    try:
        clock.now += 5
        head.ask()
        assert (head.silent_seconds, head.fault) == (5.0, "first line")
        head.ask()
        assert head.silent_seconds == 0.0
    finally:
        head.stop()


def test_a_head_that_does_not_return_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ASK_SECONDS", 0.001)
    asked, returns, clock = Event(), Event(), Clock()

    def hang() -> None:
        asked.set()
        returns.wait(60)

    head = Head(hang, clock)
    head.start()
    try:
        assert asked.wait(60)
        clock.now += 50
        assert head.silent_seconds == 50.0
        assert "does not answer" in head.fault
    finally:
        head.stop()
        returns.set()


def test_the_server_gives_up_before_ray_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PATIENCE_VARIABLE, raising=False)
    assert 30 <= bearable_seconds() < 60
    monkeypatch.setenv(PATIENCE_VARIABLE, "600")
    assert 300 <= bearable_seconds() < 600


def test_an_address_where_nobody_listens_is_refused_soon() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = "{}:{}".format(*listener.getsockname())
        wait_for_head(address, 60)
    with pytest.raises(Error, match="there is no head at 127") as error:
        wait_for_head(address, 0)
    assert (error.value.code, error.value.reason) == (Code.UNAVAILABLE, "RAY_UNAVAILABLE")
    for ours in ("auto", "ray://10.0.0.1:10001"):
        wait_for_head(ours, 0)
