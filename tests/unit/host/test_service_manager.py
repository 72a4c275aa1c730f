"""What systemd hears from a server, over a socket such as it makes."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from loramux_server.app.announce import Reported, Silent
from loramux_server.host.service_manager import ServiceManager


@pytest.fixture(params=["file", "abstract"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "notify") if request.param == "file" else f"@loramux-{os.getpid()}-{tmp_path.name}"


@pytest.fixture
def heard(place: str) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as made:
        made.bind(f"\0{place[1:]}" if place.startswith("@") else place)
        made.settimeout(10)
        yield made


def test_it_hears_each_step_and_the_ends(place: str, heard: socket.socket) -> None:
    manager = ServiceManager({"NOTIFY_SOCKET": place})
    announcer = Reported(Silent(), manager)
    announcer.progress("reading the model")
    announcer.progress("converting a\nREADY=1", 0.255)
    manager.ready()
    manager.stopping()
    assert [heard.recv(1000).decode() for _ in range(4)] == [
        "STATUS=Starting: reading the model",
        "STATUS=Starting: converting a READY=1, 26%",
        "READY=1",
        "STOPPING=1",
    ]


@pytest.mark.parametrize(
    ("variables", "seconds"),
    [
        ({"WATCHDOG_USEC": "120000000"}, 120.0),
        ({"WATCHDOG_USEC": "120000000", "WATCHDOG_PID": str(os.getpid())}, 120.0),
        ({"WATCHDOG_USEC": "120000000", "WATCHDOG_PID": "1"}, 0.0),
        ({"WATCHDOG_USEC": "soon"}, 0.0),
        ({}, 0.0),
    ],
)
def test_whether_it_watches(variables: dict[str, str], seconds: float) -> None:
    assert ServiceManager(variables).watchdog_seconds == seconds


async def test_the_watchdog_hears_from_the_loop_alone(place: str, heard: socket.socket) -> None:
    """Not from a thread, which would go on where the loop stands still."""
    manager = ServiceManager({"NOTIFY_SOCKET": place, "WATCHDOG_USEC": "20000"})
    keeping = asyncio.create_task(manager.keep_watchdog())
    for _ in range(3):
        assert await asyncio.to_thread(heard.recv, 1000) == b"WATCHDOG=1"
    heard.setblocking(False)
    with suppress(BlockingIOError):
        heard.recv(1000)  # what was said before the loop stands still
    time.sleep(0.1)  # noqa: ASYNC251  the loop is what stands still
    with pytest.raises(BlockingIOError):
        heard.recv(1000)
    keeping.cancel()


async def test_where_nobody_listens_nothing_happens(tmp_path: Path) -> None:
    for variables in ({}, {"NOTIFY_SOCKET": str(tmp_path / "gone"), "WATCHDOG_USEC": "0"}):
        manager = ServiceManager(variables)
        manager.status("text")
        manager.ready()
        await manager.keep_watchdog()


def test_a_manager_that_does_not_read_holds_nothing_up(place: str, heard: socket.socket) -> None:
    manager = ServiceManager({"NOTIFY_SOCKET": place})
    for number in range(10_000):
        manager.status(f"step {number}")
    assert heard.recv(1000) == b"STATUS=step 0"
