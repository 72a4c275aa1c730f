"""One profile at a time: recorded between the turns of the loop, written by a thread of its own."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch

from ...core.backend import ProfileCommand, ProfileResult
from ...core.errors import Code, Error, internal_error
from ...core.observing.timeline import TIMELINE, Event
from ...host.files import storage_errors
from .kernels import KernelRecorder
from .trace import write_trace

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Profile:
    command: ProfileCommand
    started: int
    """Nanoseconds since 1970."""
    ends: float
    """By the monotonic clock."""
    kernels: KernelRecorder | None
    wanted: bool = True
    result: ProfileResult | Error | None = None


class Profiler:
    """``written(id)`` is called from the writing thread and must only wake the loop, which then calls ``collect``.

    Everything else belongs to the loop's thread.
    """

    def __init__(self, device: torch.device, process: str, written: Callable[[str], object]) -> None:
        self._device, self._process, self._written = device, process, written
        self._recording: _Profile | None = None
        self._writing: _Profile | None = None

    def start(self, command: ProfileCommand) -> None:
        """Begin to record. Raises RESOURCE_EXHAUSTED while another profile is taken."""
        if self._recording is not None or self._writing is not None:
            left = max(self.seconds_left or 0.0, 1.0)
            message = f"another profile is being taken; it is done in about {left:.0f} s"
            raise Error(Code.RESOURCE_EXHAUSTED, message, reason="PROFILE_RUNNING", retry_after=left)
        half = command.most_events // 2
        kernels = KernelRecorder(self._device, half) if command.kernels else None
        TIMELINE.record(command.most_events - (half if command.kernels else 0))
        self._recording = _Profile(command, time.time_ns(), time.monotonic() + command.seconds, kernels)

    def turn(self) -> None:
        """Called between two turns of the loop: ends the profile whose time is over."""
        if (profile := self._recording) is None:
            return
        if time.monotonic() < profile.ends:
            if profile.kernels is not None:
                profile.kernels.turn()
            return
        self._recording, self._writing = None, profile
        events = TIMELINE.stop()
        kernels = () if profile.kernels is None else profile.kernels.stop()
        dropped = TIMELINE.dropped + (0 if profile.kernels is None else profile.kernels.dropped)
        work = chain(events, kernels)
        thread = threading.Thread(target=self._write, args=(profile, work, dropped), name="profile-writer", daemon=True)
        thread.start()

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the profile that is recorded ends; None: there is none."""
        return None if self._recording is None else max(self._recording.ends - time.monotonic(), 0.0)

    def answers(self, id: str) -> bool:
        """Whether a profile of this id is to be answered yet."""
        return any(p is not None and p.wanted and p.command.id == id for p in (self._recording, self._writing))

    def cancel(self, id: str) -> None:
        """Nobody wants a profile any more, if it is here."""
        if self._recording is not None and self._recording.command.id == id:
            TIMELINE.stop()
            if self._recording.kernels is not None:
                self._recording.kernels.stop()
            self._recording = None
        if self._writing is not None and self._writing.command.id == id:
            self._writing.wanted = False

    def collect(self) -> ProfileResult | Error | None:
        """What has been written; None where nobody wants it any more."""
        profile, self._writing = self._writing, None
        return profile.result if profile is not None and profile.wanted else None

    @property
    def open(self) -> str:
        """The id of the profile that is to be answered yet; empty: there is none."""
        return next((p.command.id for p in (self._recording, self._writing) if p is not None and p.wanted), "")

    def _write(self, profile: _Profile, events: chain[Event], dropped: int) -> None:
        command = profile.command
        about = {"seconds": command.seconds, "events_dropped": dropped, "device": str(self._device)}
        try:
            with storage_errors("cannot write the profile"):
                path, start = Path(command.output), profile.started
                count = write_trace(path, self._process, start, events, about, lambda: profile.wanted)
            profile.result = ProfileResult(count, dropped)
        except Error as error:
            profile.result = error.with_traceback(None)
        except Exception as error:  # a defect; whoever waits for the profile must be told
            id, profile.result = internal_error()
            log.error("writing a profile failed with internal error %s", id, exc_info=error)
        self._written(command.id)
