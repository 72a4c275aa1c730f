"""One line for each call of a door, whichever way it ended: who, what, how it ended, how much, and where time went.

It has names, ids and numbers. Of what a request holds there is nothing, at no level.
"""

from __future__ import annotations

from collections.abc import Sequence

from ...core.call import Call
from ...core.observing.observer import CallFinished, NullObserver, RequestFinished, RequestRefused
from ...core.types import BASE_NAME, Stack
from . import is_logged, write
from .lines import Event, cut
from .storms import Storms

MOST_PATH = 200
"""Characters of a path that leads nowhere."""
_WORTH_A_LINE = {"OK", "INTERNAL", "DATA_LOSS"}
"""Codes of calls that are no refusals: as many lines as there are of them."""


class RequestLog(NullObserver):
    """Writes what doors and services report as lines. Belongs to one event loop.

    ``every``: each call has a line. ``slow_seconds``: a call that takes as long is slow; 0: none is. ``addresses``:
    lines have the client's address.
    """

    def __init__(self, *, every: bool = True, slow_seconds: float = 0.0, addresses: bool = False) -> None:
        self._every, self._slow, self._addresses = every, slow_seconds, addresses
        self._storms = Storms(self._untold)

    def request_finished(self, event: RequestFinished) -> None:
        if event.call is not None:
            event.call.work.requests.append(event)

    def call_finished(self, event: CallFinished) -> None:
        """A call of a door ended. Of refused ones that cost nothing, a storm is told in numbers."""
        slow = 0 < self._slow <= event.seconds and not event.follows_a_job
        level = "warning" if slow else "debug" if event.of_the_server and event.code == "OK" else "info"
        call = event.call
        requests = call.work.requests if call is not None else []
        cheap = event.code not in _WORTH_A_LINE and not (requests or slow)
        if not (self._every or slow) or not is_logged(level) or (cheap and not self._lets(event)):
            return
        fields: Event = {"request_id": event.request_id, "door": event.door, "method": event.method}
        fields |= _outcome(event.code, event.reason)
        fields["seconds"] = _short(event.seconds)
        if call is not None:
            fields |= _caller(call)
        if self._addresses:
            fields["client"] = event.peer
        if requests:
            fields |= _work(requests)
        if call is not None and call.work.sending:
            fields["sending_seconds"] = _short(call.work.sending)
        write(level, __name__, "slow request" if slow else "request", fields)

    def quota_refused(self, tenant: str, limit: str) -> None:
        """The line of the call has it as its reason."""

    def request_refused(self, event: RequestRefused) -> None:
        """What came to a door was no call of any method."""
        if self._every and is_logged("info") and self._storms.lets("", event.reason):
            fields: Event = {"request_id": event.request_id, "door": event.door, "path": cut(event.path, MOST_PATH)}
            fields |= _outcome(event.code, event.reason)
            if self._addresses:
                fields["client"] = event.peer
            write("info", __name__, "request", fields)

    def close(self) -> None:
        """Tell of refused calls that had no line yet."""
        self._storms.close()

    def _lets(self, event: CallFinished) -> bool:
        """Whether a refused call has a line."""
        tenant = "" if event.call is None else event.call.principal.tenant
        return self._storms.lets(tenant, event.reason or event.code)

    def _untold(self, tenant: str, reason: str, count: int) -> None:
        about: Event = {"tenant": tenant} if tenant else {}
        write("warning", __name__, "refused requests without a line", {**about, "reason": reason, "requests": count})


def stack_text(stack: Stack) -> str:
    """The adapter versions of a stack with their weights: ``acme@3:0.5+sql@1:1``; ``base`` where there are none."""
    return "+".join(entry.text for entry in stack.entries) or BASE_NAME


def _outcome(code: str, reason: str) -> Event:
    return {"code": code} if reason in ("", code) else {"code": code, "reason": reason}


def _caller(call: Call) -> Event:
    principal = call.principal
    key: Event = {"key_id": principal.key_id} if principal.key_id else {}
    return {"tenant": principal.tenant, **key}


def _work(requests: Sequence[RequestFinished]) -> Event:
    """What the requests of a call took together; times are those of the longest."""
    longest = max(requests, key=lambda request: request.duration)
    found: Event = {
        "adapters": stack_text(longest.stack),
        "prompt_tokens": sum(request.prompt_tokens for request in requests),
        "completion_tokens": sum(request.completion_tokens for request in requests),
        "cached_tokens": sum(request.cached_tokens for request in requests),
    }
    if reasons := dict.fromkeys(reason.value for request in requests for reason in request.finish_reasons):
        found["finish_reason"] = "+".join(reasons)
    if longest.time_to_first_token is not None:
        found["first_token_seconds"] = _short(longest.time_to_first_token)
    found["preparation_seconds"] = _short(longest.preparation)
    if (times := longest.times) is not None:
        found["queue_seconds"] = _short(times.waiting)
        found["adapter_load_seconds"] = _short(times.loading)
        found["prefill_seconds"] = _short(times.prefill)
        found["decode_seconds"] = _short(times.decode)
        found["preemptions"] = times.preempted
    return found


def _short(seconds: float) -> float:
    return round(seconds, 4)
