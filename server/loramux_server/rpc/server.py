"""The gRPC server itself: its port, its limits, health and reflection, and how it ends."""

from __future__ import annotations

from collections.abc import Callable

from grpc import aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from ..api.methods import METHODS, SERVICES, methods_of
from ..config import Address
from ..host.certificates import CertificateFiles
from ..host.ports import cannot_listen, why_not
from ..services.access.methods import require_all
from ..services.availability import Availability
from ..services.common.calls import LAST_WORDS, Calls
from .handlers import handlers_of
from .interceptor import CallInterceptor
from .limits import RpcLimits
from .reflection import enable_reflection
from .tls import server_credentials

LIVENESS = "liveness"
"""The name in the health service that is SERVING as long as the process lives; the others tell readiness."""
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class RpcServer:
    """The gRPC door.

    ``certificate`` is for TLS; None: plain text.
    """

    def __init__(
        self,
        availability: Availability,
        calls: Calls,
        address: Address,
        *,
        certificate: CertificateFiles | None = None,
        reflects: Callable[[], bool] = lambda: True,
        limits: RpcLimits | None = None,
    ) -> None:
        """``reflects`` is asked with each call of reflection."""
        require_all(METHODS)
        limits = limits or RpcLimits()
        self._options = limits.options()
        self._address = address
        self._certificate = certificate
        self._availability = availability
        self._calls = calls
        self._interceptor = CallInterceptor(calls, limits.stall_timeout, reflects)
        self._health = health.aio.HealthServicer()
        self._server: aio.Server | None = None
        self._stopping = False

    @property
    def address(self) -> Address:
        return self._address

    @property
    def running(self) -> int:
        return self._calls.running

    async def start(self) -> None:
        """Listen, with health NOT_SERVING. Afterwards ``address`` has the real port.

        Raises FAILED_PRECONDITION when the port is taken or the host is not ours.
        """
        check_free(self._address)
        server = aio.server(interceptors=(self._interceptor,), options=self._options)
        await self._health.set(LIVENESS, SERVING)
        await self.set_serving(False)
        server.add_generic_rpc_handlers(handlers_of(methods_of(self._availability)))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        enable_reflection((*SERVICES, health.SERVICE_NAME), server)
        try:
            if self._certificate is None:
                port = server.add_insecure_port(str(self._address))
            else:
                port = server.add_secure_port(str(self._address), server_credentials(self._certificate))
        except RuntimeError as error:
            raise cannot_listen(*self._address, "it was taken just now") from error
        self._address = Address(self._address.host, port)
        await server.start()
        self._server = server

    async def set_serving(self, serving: bool) -> None:
        """What the health service says, for the server as a whole and for each service. Once it stops, it stays so."""
        if self._stopping:
            return
        for name in ("", *SERVICES):
            await self._health.set(name, SERVING if serving else NOT_SERVING)

    async def drain(self, timeout: float) -> int:
        """Wait up to ``timeout`` seconds for the running calls, then end the rest with UNAVAILABLE; gives their number.

        New calls must be refused by then.
        """
        await self.set_serving(False)
        self._stopping = True
        return await self._calls.drain(timeout)

    async def stop(self) -> None:
        """Stop listening and close all connections. Fine to call twice, and when ``start`` failed."""
        server, self._server = self._server, None
        if server is not None:
            await server.stop(LAST_WORDS)


def check_free(address: Address) -> None:
    """Raise FAILED_PRECONDITION unless a server could listen there; gRPC's own messages for it are many and unclear."""
    if why := why_not(*address):
        raise cannot_listen(*address, why)
