"""An engine whose front is gone ends, whatever was on its way between them."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest

from loramux_server.core.settings import EngineSettings
from loramux_server.engine.transport.wire import Start, encode

CHILD = """
import sys, threading, types

class Engine:
    def run(self):
        threading.Event().wait()

factory = types.ModuleType("loramux_server.engine_factory")
from tests.unit.services.fakes import engine_info
def build(settings, secret, send, progress):
    progress("something that nobody reads", None)
    return Engine(), engine_info(8)
factory.build = build
sys.modules["loramux_server.engine_factory"] = factory
from loramux_server.engine_process import main
main(int(sys.argv[1]))
"""


@pytest.mark.parametrize("unread", [True, False])
def test_it_ends_when_the_front_is_gone(unread: bool) -> None:
    ours, theirs = socket.socketpair()
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(theirs.fileno())], pass_fds=[theirs.fileno()])
    theirs.close()
    try:
        ours.sendall(encode(Start(EngineSettings(), b"secret")))
        while b"Ready" not in ours.recv(1 << 16, socket.MSG_PEEK):
            pass
        if not unread:
            ours.recv(1 << 16)
        ours.close()
        assert child.wait(30) == 3
    finally:
        child.kill()
        child.wait()
