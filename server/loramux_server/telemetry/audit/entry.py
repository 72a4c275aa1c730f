"""One line of the audit log."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Self

MAX_TEXT = 256
"""Most characters of a value: names of adapters are shorter, what a caller makes up may not be."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What was done or refused, to what, by whom. Values are names, ids and numbers, never content."""

    action: str
    """The method, such as ``DeleteAdapter``, or the command, such as ``keys create``."""
    object: str = ""
    """What it was done to: an adapter version, a job, a dataset, a key, a tenant. Empty: nothing was named yet."""
    outcome: str = "OK"
    """``OK`` or the code of the error."""
    reason: str = ""
    """The reason of the error, a stable word."""
    tenant: str = ""
    """Empty: whoever called was not known, or is an operator at the command line."""
    key: str = ""
    """Id of the key that was presented."""
    peer: str = ""
    """Address of the client; ``command line of USER`` for commands on the state directory."""
    request_id: str = ""
    details: Mapping[str, str] = field(default_factory=dict)
    """What was set, such as the scopes of a key or the value of a quota. Never a secret."""
    suppressed: int = 0
    """Earlier refusals of the same tenant that were too many to write."""
    time: datetime = field(default_factory=lambda: datetime.now(UTC))

    @property
    def written_time(self) -> str:
        """``2026-11-29T08:00:00.000Z``."""
        return self.time.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")

    def line(self) -> bytes:
        """JSON with a newline; empty values are left out. Control characters and non-ASCII are escaped."""
        values: dict[str, Any] = {"time": self.written_time}
        for name in _TEXTS:
            if text := getattr(self, name):
                values[name] = text[:MAX_TEXT]
        if self.details:
            values["details"] = {name: text[:MAX_TEXT] for name, text in self.details.items()}
        if self.suppressed:
            values["suppressed"] = self.suppressed
        return json.dumps(values, separators=(", ", ": ")).encode() + b"\n"

    @classmethod
    def read(cls, line: bytes) -> Self | None:
        """The entry of a line; None for a line that was cut by a crash or is none of ours."""
        try:
            values = json.loads(line)
            time = datetime.fromisoformat(values["time"]).astimezone(UTC)
            details = {str(name): str(text) for name, text in values.get("details", {}).items()}
            texts = {name: str(values.get(name, "")) for name in _TEXTS}
            return cls(**texts, details=details, suppressed=int(values.get("suppressed", 0)), time=time)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None


_TEXTS = ("tenant", "key", "peer", "request_id", "action", "object", "outcome", "reason")
"""The fields that are texts, in the order of a line."""
