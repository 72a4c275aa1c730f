"""Who waits for news of which jobs, and the one look at the store for all of them."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager

from ...core.errors import Error

LOOK_SECONDS = 5.0
"""The store is looked at this often while somebody waits."""


class Watchers:
    """Watchers of jobs, on one event loop. ``newest`` gives the number of each job's last event; it may block.

    Another server on the same database may run a job: that news is not told here, and so is looked for. One look serves
    all watchers, so that a thousand that wait cost no more than one.
    """

    def __init__(self, newest: Callable[[Collection[str]], Mapping[str, int]]) -> None:
        self._newest = newest
        self._of: defaultdict[str, set[asyncio.Event]] = defaultdict(set)
        self._looking: asyncio.Task[None] | None = None

    def __contains__(self, job_id: str) -> bool:
        return job_id in self._of

    @contextmanager
    def watching(self, job_id: str) -> Iterator[asyncio.Event]:
        """An event that is set at news of a job."""
        news = asyncio.Event()
        self._of[job_id].add(news)
        if self._looking is None:
            self._looking = asyncio.create_task(self._look(), name="job news")
        try:
            yield news
        finally:
            self._of[job_id].discard(news)
            if not self._of[job_id]:
                del self._of[job_id]
            if not self._of and self._looking is not None:
                self._looking.cancel()
                self._looking = None

    def tell(self, job_id: str) -> None:
        """Wake the watchers of a job."""
        for news in self._of.get(job_id, ()):
            news.set()

    async def _look(self) -> None:
        known: Mapping[str, int] = {}
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            jobs = tuple(self._of)
            try:
                found = await asyncio.to_thread(self._newest, jobs)
            except Error:  # the watchers look for themselves then, and tell why they cannot
                found = {}
            for job_id in jobs:
                # A job that was not known before may have moved since its watchers looked.
                if job_id not in known or found.get(job_id) != known[job_id]:
                    self.tell(job_id)
            known = found
