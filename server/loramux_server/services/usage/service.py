"""Usage as its tenant, or an operator, reads it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

from ...core.callers.principal import Principal, Scope
from ...core.callers.usage import Dimension, UsageQuery, UsageRow, is_word
from ...core.errors import Code, Error, FieldViolation, invalid, invalid_field
from ..common.checks import shown
from ..common.context import Context
from ..common.types import Page
from .recorder import UsageRecorder

PAGE = 1000
"""Rows of a page unless one says otherwise."""
LONGEST_DAYS = 366
"""Most days of one query: each version is looked at for each of them."""
_DAY = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageRequest:
    """Which usage is asked for. Days are ``YYYY-MM-DD`` of UTC."""

    principal: Principal
    since: str = ""
    """Empty: the first day of this month."""
    until: str = ""
    """The first day that is left out. Empty: today is the last."""
    group_by: tuple[Dimension, ...] = ()
    """Empty: day, tenant and adapter."""
    tenant: str = ""
    """Empty: all that the caller may see."""
    adapter: str = ""
    page_size: int = PAGE
    page_token: str = ""


class UsageService:
    """Usage of the caller's tenant; of all tenants for the scope ``admin``."""

    def __init__(self, context: Context, recorder: UsageRecorder) -> None:
        self._table = context.store.usage
        self._recorder = recorder

    async def usage(self, request: UsageRequest) -> Page[UsageRow]:
        """A page of groups. What this server has recorded is among them.

        Raises INVALID_ARGUMENT (days, names, page), PERMISSION_DENIED (another tenant without the scope ``admin``, a
        key that is limited to some adapters).
        """
        for field, text in (("tenant", request.tenant), ("adapter", request.adapter)):
            if text and not is_word(text):
                raise invalid_field(field, f"is {shown(text)}; it must be at most 640 printable ASCII characters")
        since, until = _days(request)
        query = UsageQuery(
            since=since,
            until=until,
            group_by=request.group_by or (Dimension.DAY, Dimension.TENANT, Dimension.ADAPTER),
            tenants=tenants_of(request.principal, [request.tenant] if request.tenant else []),
            adapter=request.adapter,
        )
        return await self.read(query, request.page_size, request.page_token)

    async def read(self, query: UsageQuery, page_size: int = PAGE, page_token: str = "") -> Page[UsageRow]:
        """As :meth:`usage`, for tenants that :func:`tenants_of` gave."""
        await self._recorder.flush()
        return Page(*await asyncio.to_thread(self._table.read, query, page_size, page_token))


def tenants_of(principal: Principal, asked: Collection[str]) -> Collection[str] | None:
    """The tenants whose usage a caller reads, of those that it ``asked`` for (none: all that it may); None: all.

    Raises PERMISSION_DENIED as :meth:`UsageService.usage` does.
    """
    if principal.adapters is not None:
        words = "the key is limited to some adapters, and usage is of all: use a key of the tenant without such a limit"
        raise Error(Code.PERMISSION_DENIED, words, reason="ADAPTER_NOT_ALLOWED")
    if Scope.ADMIN in principal.scopes:
        return asked or None
    if set(asked) - {principal.tenant}:
        words = "usage of other tenants needs the scope 'admin', which the key has not"
        raise Error(Code.PERMISSION_DENIED, words, reason="SCOPE_MISSING")
    return (principal.tenant,)


def _days(request: UsageRequest) -> tuple[date, date]:
    """The first day, and the first that is left out. Raises INVALID_ARGUMENT."""
    found: list[FieldViolation] = []
    today = datetime.now(UTC).date()
    since = _day("since", request.since, today.replace(day=1), found)
    until = _day("until", request.until, today + timedelta(days=1), found)
    if found:
        raise invalid(found)
    if until <= since:
        raise invalid_field("until", f"is {until}, the first day that is left out; it must be after since, {since}")
    if (until - since).days > LONGEST_DAYS:
        raise invalid_field("since", f"is {(until - since).days} days before until; {LONGEST_DAYS} are allowed at most")
    return since, until


def _day(field: str, text: str, default: date, found: list[FieldViolation]) -> date:
    if not text:
        return default
    try:
        if _DAY.fullmatch(text):
            return date.fromisoformat(text)
    except ValueError:
        pass
    found.append(FieldViolation(field, f"is {shown(text)}; it must be a day of UTC such as 2026-11-30"))
    return default
