"""The decision about a call, before its request is read: who makes it, and may it."""

from __future__ import annotations

from dataclasses import dataclass

from ...core.call import Call
from ...core.callers.principal import Principal
from ...core.errors import Code, Error
from ...core.observing.tracing import UNSEEN, Arrival, TraceContext
from .authenticator import Authenticator
from .credentials import Credentials
from .methods import METHODS, Method, short_name
from .quotas import Admission, QuotaMeter, Rate
from .refusals import unavailable


@dataclass(frozen=True, slots=True)
class Incoming:
    """A call as a door sees it arrive."""

    method: str
    """Full name: ``package.Service/Method``."""
    request_id: str
    credentials: Credentials
    deadline: float | None = None
    """Seconds on the monotonic clock; None: the client set none."""
    door: str = ""
    """``grpc`` or ``http``."""
    trace: TraceContext | None = None
    """The span that the caller names as the parent; later the one that the call is answered under."""
    arrival: Arrival = UNSEEN
    """What the span of the call tells about it."""

    @property
    def asks_for(self) -> Method:
        """What its method asks for."""
        return METHODS[self.method]

    @property
    def short_method(self) -> str:
        """The method's name without its service."""
        return short_name(self.method)


class Access:
    """Decides about calls. One instance serves all doors; ``meter`` counts them against quotas.

    The app sets ``authenticator`` before a door starts: there is no call before it is known who may make one.
    """

    def __init__(self, authenticator: Authenticator | None = None, meter: QuotaMeter | None = None) -> None:
        self.authenticator = authenticator
        self._meter = meter or QuotaMeter()

    async def identify(self, incoming: Incoming) -> Call:
        """The call, made by whom it is made. Raises UNAUTHENTICATED and UNAVAILABLE."""
        if self.authenticator is None:
            raise unavailable()
        return Call(
            method=incoming.short_method,
            request_id=incoming.request_id,
            principal=await self.authenticator.authenticate(incoming.credentials),
            deadline=incoming.deadline,
            peer=incoming.credentials.peer,
            trace=incoming.trace,
        )

    def authorise(self, incoming: Incoming, principal: Principal) -> None:
        """Raise PERMISSION_DENIED, naming the missing scope, unless the principal may make the call."""
        scope = incoming.asks_for.scope
        if scope is not None and scope not in principal.scopes:
            message = f"{incoming.short_method} needs the scope {scope.value!r}, which the key has not"
            raise Error(Code.PERMISSION_DENIED, message, reason="SCOPE_MISSING")

    def rates(self, principal: Principal) -> list[Rate]:
        """What a caller has left of its quotas of a minute."""
        return self._meter.rates(principal)

    def admit(self, incoming: Incoming, principal: Principal) -> Admission:
        """Count a call until the context ends. Raises RESOURCE_EXHAUSTED over a quota."""
        return self._meter.admit(principal, incoming.asks_for)
