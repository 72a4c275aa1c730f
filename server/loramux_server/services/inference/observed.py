"""Requests that are answered at once, as the observer is told of them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ...core.backend import SequenceTimes
from ...core.errors import Code, Error
from ...core.observing.observer import Observer, RequestFinished, RequestStarted
from ..common.deadlines import code_of_cancelled


@dataclass(slots=True)
class Observed:
    """What the engine says about a request while it answers: the times of the sequence that ended last.

    ``cached_tokens``: those of the prompt that the prefix cache gave.
    """

    times: SequenceTimes | None = None
    cached_tokens: int = 0


@contextmanager
def observed(
    observer: Observer, request: RequestStarted, came: float, deadline: float, *, completion_tokens: int = 0
) -> Iterator[Observed]:
    """Tell of a request that the block answers, whichever way it ends.

    ``came`` and ``deadline`` on the monotonic clock. ``completion_tokens`` count if it is answered.
    """
    begun = time.monotonic()
    observer.request_started(request)
    found = Observed()
    try:
        yield found
        code = "OK"
    except Error as error:
        code = error.code.name
        raise
    except Exception:
        code = Code.INTERNAL.name
        raise
    except BaseException:  # the caller has left
        code = code_of_cancelled(deadline).name
        raise
    finally:
        observer.request_finished(
            RequestFinished(
                request_id=request.request_id,
                method=request.method,
                tenant=request.tenant,
                stack=request.stack,
                prompt_tokens=request.prompt_tokens,
                completion_tokens=completion_tokens if code == "OK" else 0,
                cached_tokens=found.cached_tokens,
                duration=time.monotonic() - came,
                finish_reasons=(),
                code=code,
                preparation=begun - came,
                times=found.times,
                call=request.call,
            )
        )
