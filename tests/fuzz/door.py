"""The gRPC door of a whole server with a scripted engine: every input is a method and the bytes of its request."""

from __future__ import annotations

import asyncio
import atexit
import tempfile
import threading
from concurrent.futures import Future
from pathlib import Path

import grpc

from loramux_server.api.methods import METHODS
from loramux_server.app.app import App
from loramux_server.config import Settings
from loramux_server.core.types import FinishReason
from tests.unit.services.fakes import FakeBackend, Script, engine_info
from tests.unit.services.tiny_tokenizer import write_tokenizer

from .requests import STREAMED, sample
from .target import Target

DEFECTS = (grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL)
SECONDS = 20.0
"""A call that takes longer hangs."""


class Server:
    """A server on a thread of its own, until the process ends."""

    def __init__(self) -> None:
        root = Path(tempfile.mkdtemp(prefix="loramux-fuzz-"))
        tokenizer = write_tokenizer(root / "tokenizer")
        backend = FakeBackend(
            engine_info(400, tokenizer_path=str(tokenizer)), lambda _: Script((5, 6), finish=FinishReason.STOP)
        )
        settings = Settings(
            state_dir=root / "state", listen="127.0.0.1:0", http_listen="off", metrics_listen="off", drain_timeout=0.01
        )
        ready: Future[str] = Future()
        threading.Thread(target=lambda: asyncio.run(self._serve(App(settings, backend), ready)), daemon=True).start()
        self.channel = grpc.insecure_channel(ready.result(60))
        atexit.register(self.channel.close)

    async def _serve(self, app: App, ready: Future[str]) -> None:
        try:
            await app.start()
        except BaseException as error:
            ready.set_exception(error)
            raise
        ready.set_result(app.address)
        await asyncio.Event().wait()

    def take(self, data: bytes) -> None:
        """Call the method whose number is the first byte, with the rest as its request."""
        if data:
            self.call(METHODS[data[0] % len(METHODS)], data[1:])

    def call(self, method: str, data: bytes) -> grpc.StatusCode:
        """How a call with these bytes as its request ended. Raises AssertionError where it may not end so."""
        path, code, words = f"/{method}", grpc.StatusCode.OK, ""
        try:
            if method.rpartition("/")[2] in STREAMED:
                self.channel.stream_unary(path)(iter(data.split(b"\xff\x00\xff")), timeout=SECONDS)
            else:  # a method with one answer is as well read as a stream of one
                for _ in self.channel.unary_stream(path)(data, timeout=SECONDS):
                    pass
        except grpc.RpcError as error:
            code, words = error.code(), error.details()
        assert code not in DEFECTS, (method, code, words)
        assert code is not grpc.StatusCode.DEADLINE_EXCEEDED, (method, "hangs")
        return code


def door() -> Target:
    """All methods, the number of one before its request's bytes."""
    server = Server()
    seeds = [bytes((i,)) + sample(method, seed) for i, method in enumerate(METHODS) for seed in range(3)]
    return Target("door", server.take, seeds, modules=("loramux_server.rpc", "loramux_server.services.common"))
