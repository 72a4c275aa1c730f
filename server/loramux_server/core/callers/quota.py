"""Quotas: how much a tenant, or one key of it, may ask for and keep."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Literal, cast, get_args

from ..errors import Code, Error, Exceeded, FieldViolation, invalid

Limit = Literal[
    "requests_per_minute",
    "tokens_per_minute",
    "concurrent",
    "queued",
    "stored_bytes",
    "adapters",
    "datasets",
    "jobs_queued",
    "jobs_running",
    "training_tokens_per_day",
]
LIMITS = cast("tuple[Limit, ...]", get_args(Limit))
OF_CALLS: frozenset[Limit] = frozenset({"requests_per_minute", "tokens_per_minute", "concurrent", "queued"})
"""Limits that a key can have of its own. What is stored and trained belongs to the tenant, whichever key asked."""
MOST = 2**53
"""The largest limit: every program reads integers up to here exactly."""

EVERYBODY = "*"
"""Subject of the limits of every tenant that has none of its own."""


@dataclass(frozen=True, slots=True)
class Quota:
    """Limits of one subject; None: there is none. The database keeps it as a document: fields are added freely."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    """Prompt tokens and generated ones together."""
    concurrent: int | None = None
    """Generations and scores that are being answered."""
    queued: int | None = None
    """Generations and scores that wait for their first token."""
    stored_bytes: int | None = None
    """Bytes of adapter versions and datasets together."""
    adapters: int | None = None
    """Names of adapters."""
    datasets: int | None = None
    jobs_queued: int | None = None
    """Training jobs that are queued or paused."""
    jobs_running: int | None = None
    training_tokens_per_day: int | None = None
    """Tokens trained on in a day of UTC."""

    def of(self, limit: Limit) -> int | None:
        """One of the limits."""
        return cast("int | None", getattr(self, limit))

    def over(self, other: Quota) -> Quota:
        """These limits, and those of ``other`` where this has none."""
        mine = {f.name: value for f in fields(self) if (value := getattr(self, f.name)) is not None}
        return replace(other, **mine)

    @property
    def limits(self) -> dict[Limit, int]:
        """The limits that there are."""
        return {limit: value for limit in LIMITS if (value := self.of(limit)) is not None}


@dataclass(frozen=True, slots=True)
class Bound:
    """A limit as it holds for somebody."""

    subject: str
    """Who is counted together: ``tenant:NAME`` or ``key:ID``."""
    quota: Quota


@dataclass(frozen=True, slots=True)
class Quotas:
    """The quotas of all subjects as the database has them: ``*``, ``tenant:NAME`` and ``key:ID``."""

    by_subject: Mapping[str, Quota]

    def tenant(self, tenant: str) -> Quota:
        """The limits of a tenant: its own, else those of every tenant."""
        return self.by_subject.get(tenant_subject(tenant), _NONE).over(self.by_subject.get(EVERYBODY, _NONE))

    def of(self, subject: str) -> Quota:
        """The limits of a subject that calls are counted for: ``tenant:NAME`` or ``key:ID``."""
        kind, _, name = subject.partition(":")
        return self.tenant(name) if kind == "tenant" else self.by_subject.get(subject, _NONE)

    @property
    def of_calls(self) -> bool:
        """Whether there is a limit of calls, whoever has it."""
        return any(not OF_CALLS.isdisjoint(quota.limits) for quota in self.by_subject.values())

    def bounds(self, tenant: str, key_id: str = "") -> tuple[Bound, ...]:
        """All that hold for a caller. They are counted each on its own, so the strictest decides."""
        found = [Bound(tenant_subject(tenant), self.tenant(tenant))]
        if key_id and (own := self.by_subject.get(key_subject(key_id))) is not None:
            found.append(Bound(key_subject(key_id), own))
        return tuple(found)


_NONE = Quota()
NO_QUOTAS = Quotas({})


def tenant_subject(tenant: str) -> str:
    """The subject that a tenant is."""
    return f"tenant:{tenant}"


def key_subject(key_id: str) -> str:
    """The subject that a key is."""
    return f"key:{key_id}"


def check_changes(subject: str, changes: Mapping[Limit, int | None]) -> None:
    """Raise INVALID_ARGUMENT for limits that ``subject`` cannot have; None removes one."""
    found = [
        FieldViolation(limit, f"is {value}; it must be from 0 to 2^53, or none to remove the limit")
        for limit, value in changes.items()
        if value is not None and not 0 <= value <= MOST
    ]
    if subject.startswith("key:"):
        words = "is counted for the whole tenant, whichever key asks; set it with --tenant"
        found += [FieldViolation(limit, words) for limit in changes if limit not in OF_CALLS]
    if found:
        raise invalid(found)


def exceeded(
    subject: str, limit: Limit, allowed: int, used: int, *, asked: int = 1, retry_after: float | None = None
) -> Error:
    """RESOURCE_EXHAUSTED for who is over a limit. ``retry_after``: seconds until it can work; None: not by waiting."""
    what = limit.replace("_", " ")
    description = f"{what} is limited to {allowed}: {used} in use, {asked} more asked for"
    if asked > allowed:
        description = f"{what} is limited to {allowed}, and this asks for {asked} at once: it can never be granted"
    return Error(
        Code.RESOURCE_EXHAUSTED,
        f"the quota of {subject} is reached: {description}",
        reason="QUOTA_EXCEEDED",
        violations=[FieldViolation(subject, description)],
        retry_after=None if asked > allowed else retry_after,
        exceeded=Exceeded(limit, allowed),
    )
