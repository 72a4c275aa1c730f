"""Runs a merge of adapters in a short-lived process, and makes its answer ours."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Awaitable, Callable
from typing import cast

import msgspec

from ...core.compose import ComposeCommand, ComposeResult
from ...core.errors import Code, Error, Reason
from ...telemetry.logs import child_environment, get_logger

log = get_logger(__name__)

Composer = Callable[[ComposeCommand], Awaitable[ComposeResult]]

MODULE = "loramux_server.compose_process"


class _Answer(msgspec.Struct):
    """A result, or an error."""

    error: float | None = None
    code: str = ""
    message: str = ""
    reason: str = ""


async def run_composer(command: ComposeCommand) -> ComposeResult:
    """Merge in a process of its own; cancelling this ends it. Raises what the merge raises."""
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", MODULE),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={"OMP_NUM_THREADS": "1", **child_environment()},
        start_new_session=True,  # a Ctrl-C in the terminal is the server's to handle
    )
    try:
        output, _ = await child.communicate(msgspec.json.encode(command))
    except RuntimeError:  # uvloop's word for a child that ended before it had read everything
        output = b""
        await child.wait()
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        await child.wait()
        raise
    if child.returncode or not output:
        log.error("a merge of adapters died", exit_status=child.returncode, method=command.method.value)
        raise Error(
            Code.RESOURCE_EXHAUSTED if child.returncode == -9 else Code.INTERNAL,
            f"the merge was ended by the system (exit status {child.returncode}), perhaps for lack of memory; "
            "the server's log may say more",
            reason="COMPOSE_DIED",
        )
    answer = msgspec.json.decode(output, type=_Answer)
    if answer.error is not None:
        return ComposeResult(answer.error)
    raise Error(Code(answer.code), answer.message, reason=cast("Reason", answer.reason))
