"""A running job whose tenant has used up the training tokens of the day: it goes back into the queue until tomorrow."""

from __future__ import annotations

import asyncio

from ....core.errors import Error
from ....core.jobs import JobState
from ....store.records import JobRecord
from ...common.context import Context
from ..board import JobBoard

LOOK_SECONDS = 1.0
"""How often a job whose tenant has such a quota is looked at."""


async def queue_again_when_spent(context: Context, board: JobBoard, job: JobRecord) -> None:
    """Return once the job was queued again. It stays there, and its event says why, until the tenant may train.

    Ends without a move only by being cancelled: the job ends, or another caller moved it first.
    """
    tenant = job.request.tenant
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        if context.meter.quotas.tenant(tenant).training_tokens_per_day is None:
            continue
        try:
            reason = await asyncio.to_thread(context.store.quotas.spent, tenant)
            now = await asyncio.to_thread(context.store.jobs.get, job.id) if reason else None
            if now is None or now.state is not JobState.RUNNING:
                continue
            # The row first, as for a pause: from the next moment on the work may end.
            await board.move(job.id, JobState.QUEUED, message=reason, fence=job.fence)
        except Error:  # the database is away, or the job was stopped meanwhile
            continue
        board.interrupt(job.id)
        return
