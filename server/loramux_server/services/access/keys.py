"""The API keys, followed in the database: calls look them up in memory, and whoever is refused was looked for anew."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field

from ...core.callers.keys import ApiKey
from ...core.callers.principal import Principal
from ...core.errors import Error
from ...core.observing.outage import Outage
from ...store.keys import KeyRecord, KeyState, KeyTable
from ...telemetry.logs import get_logger
from .refusals import Refused, Verdict, unavailable

logger = get_logger(__name__)

FOLLOW_SECONDS = 1.0
"""Between two readings of what has changed: a revocation takes effect within 2 s on every server of a database."""
LEAST_SECONDS = 0.1
"""Between two readings that callers wait for, however many do."""
PATIENCE = 2.0
"""Seconds that a caller waits for a reading before it is told to try again."""
KNOWN_SECONDS = 900.0
"""How long keys that are known open the server while the database is away."""

_NOBODYS = "0" * 64
"""The digest of no secret: what the secret of an unknown key is compared with, which takes the same time."""


@dataclass(frozen=True, slots=True)
class _Known:
    record: KeyRecord
    principal: Principal


@dataclass(slots=True)
class _Readings:
    """When the table was read, in seconds on the monotonic clock, and who waits for it to be read again."""

    began: float = float("-inf")
    """The last one, whatever became of it."""
    succeeded: float = float("-inf")
    """The last one that succeeded: when it began."""
    wanted: asyncio.Event = field(default_factory=asyncio.Event)
    waiting: list[asyncio.Future[None]] = field(default_factory=list)


class KeyRing:
    """All keys that may open the server. One instance serves all doors.

    Only what changed is read, by one query a second and ten at most, so random keys cost neither memory nor queries.
    A caller is refused from a reading that began after its call: a new key works at once, and a key that is
    unknown takes the time of one with a wrong secret.
    """

    def __init__(
        self, table: KeyTable, *, clock: Callable[[], float] = time.monotonic, now: Callable[[], float] = time.time
    ) -> None:
        self._table, self._clock, self._now = table, clock, now
        self._known: dict[str, _Known] = {}
        self._revision = 0
        self._readings = _Readings()
        self._outage = Outage(clock)
        # A thread of its own: others' work must not keep a revocation from being seen.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="keys")
        self._following: asyncio.Task[None] | None = None
        self.on_revoked: Callable[[str], None] = lambda key_id: None
        """Called with the id of each key that is found revoked while it is followed: its calls under way must end."""

    async def start(self) -> None:
        """Read the keys, and follow them from now on. Raises ``Error`` when the database cannot be read."""
        self._apply(*await self._changes())
        self._readings.succeeded = self._clock()
        self._following = asyncio.create_task(self._follow(), name="keys")

    async def stop(self) -> None:
        """Follow them no more. Harmless twice."""
        following, self._following = self._following, None
        if following is not None:
            following.cancel()
            await asyncio.wait((following,))
        self._thread.shutdown(wait=False)

    @property
    def empty(self) -> bool:
        """Whether no key was ever created, as far as the last reading tells."""
        return self._revision == 0

    def check_known(self) -> None:
        """Raise UNAVAILABLE where the last reading is too old to go by."""
        if self._clock() - self._readings.succeeded > KNOWN_SECONDS:
            raise unavailable()

    async def principal(self, key: ApiKey) -> Verdict:
        """Whose key it is, or why it opens nothing. Raises UNAVAILABLE where that cannot be found out now."""
        verdict = self._judge(key)
        if isinstance(verdict, Principal):
            self.check_known()
            return verdict
        await self.read_again()
        return self._judge(key)

    async def read_again(self) -> None:
        """Return after a reading that begins from now on. Raises UNAVAILABLE when it fails or takes too long."""
        done = asyncio.get_running_loop().create_future()
        self._readings.waiting.append(done)
        self._readings.wanted.set()
        try:
            async with asyncio.timeout(PATIENCE):
                await done
        except TimeoutError:
            raise unavailable() from None

    def _judge(self, key: ApiKey) -> Verdict:
        known = self._known.get(key.id)
        right = hmac.compare_digest(known.record.secret_sha256 if known else _NOBODYS, key.digest)
        if known is None:
            return Refused("unknown key", key.id)
        if not right:
            return Refused("wrong secret", key.id)
        match known.record.state(self._now()):
            case KeyState.REVOKED:
                return Refused("revoked", key.id)
            case KeyState.EXPIRED:
                return Refused("expired", key.id)
        return known.principal

    async def _follow(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(FOLLOW_SECONDS):
                    await self._readings.wanted.wait()
            await asyncio.sleep(self._readings.began + LEAST_SECONDS - self._clock())
            await self._read()

    async def _read(self) -> None:
        readings = self._readings
        readings.wanted.clear()
        waiting, readings.waiting = readings.waiting, []
        readings.began = self._clock()
        try:
            self._apply(*await self._changes())
        except Exception as error:
            if self._outage.failed():
                logger.warning(
                    "API keys cannot be read: known ones go on, others are UNAVAILABLE",
                    error=error.message if isinstance(error, Error) else repr(error),
                    known_for_seconds=KNOWN_SECONDS,
                )
            for each in waiting:
                if not each.done():
                    each.set_exception(unavailable())
        else:
            readings.succeeded = readings.began
            if (seconds := self._outage.over()) is not None:
                logger.warning("API keys can be read again", after_seconds=round(seconds, 1))
            for each in waiting:
                if not each.done():
                    each.set_result(None)

    async def _changes(self) -> tuple[tuple[KeyRecord, ...], int]:
        """What to apply. A database that was set back to an earlier state is read from the beginning."""
        read = self._table.changed_since
        loop = asyncio.get_running_loop()
        changed, newest = await loop.run_in_executor(self._thread, read, self._revision)
        if newest < self._revision:
            logger.warning("the database was set back: all API keys are read again")
            self._known.clear()
            changed, newest = await loop.run_in_executor(self._thread, read, 0)
        return changed, newest

    def _apply(self, changed: tuple[KeyRecord, ...], newest: int) -> None:
        if self._following is not None and self.empty and newest:
            logger.warning("the first API key was created: this server asks for a key from now on")
        for record in changed:
            adapters = None if record.adapters is None else frozenset(record.adapters)
            principal = Principal(record.tenant, frozenset(record.scopes), record.id, adapters)
            self._known[record.id] = _Known(record, principal)
            if record.revoked is not None:
                self.on_revoked(record.id)
        self._revision = newest
