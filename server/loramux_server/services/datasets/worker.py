"""Has datasets read, checked and tokenised: small ones on a thread, large ones in a process, one at a time.

A process, because Python computes in one thread at a time: minutes of checks would slow every stream down. Its
priority is low, and only one runs at a time, so that it takes little of the engine's processors.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from loramux.comparison import MAX_DOCUMENT_BYTES

from ...core.errors import Code, Error, invalid_field
from ...core.jobs import MIN_ACCURACY, JobRequest, TrainSpec
from ...core.watch import Watch
from ...data.dataset import DatasetLimits
from ...store.records import DatasetRecord
from ...telemetry.logs import child_environment, get_logger
from ..common.context import Context
from ..common.damage import retried
from ..common.workers import compute
from .held_out import DOCUMENTS
from .orders import Answer, Checked, CheckOrder, Delivery, Order, Refused, RowsOrder, RowsSummary
from .preparation import carry_out
from .training_data import Source, Sources

log = get_logger(__name__)

MODULE = "loramux_server.dataset_process"
LARGE = 256 * 1024
"""Bytes of datasets from which on they have a process: about a second of work, several times the process's start."""


class DatasetWorker:
    """Reads stored datasets for the services.

    Its calls raise NOT_FOUND for a dataset, INVALID_ARGUMENT for what is wrong with it, DATA_LOSS for a damaged one.
    """

    def __init__(self, context: Context) -> None:
        self._store, self._text, self._info, self._limits = context.store, context.text, context.info, context.limits

    async def check(
        self,
        tenant: str,
        spec: TrainSpec,
        dataset_id: str,
        validation_id: str = "",
        *,
        show: int = 0,
        from_line: int = 0,
    ) -> Checked:
        """What is wrong with a dataset, and what its good rows hold."""
        found = await self._carry_out(
            tenant, spec, (dataset_id, validation_id), lambda sources, _: CheckOrder(sources, show, from_line)
        )
        assert isinstance(found, Checked)
        return found

    async def make_rows(self, request: JobRequest, folder: Path) -> RowsSummary:
        """Tokenise a job's data into a rows file in ``folder``."""
        info, judges_answers = self._info, request.gate.kind == MIN_ACCURACY
        found = await self._carry_out(
            request.tenant,
            request.spec,
            (request.dataset_id, request.validation_dataset_id),
            lambda sources, documents: RowsOrder(
                sources,
                str(folder),
                info.base_fingerprint,
                info.max_context,
                judges_answers,
                request.compare_prompt,
                documents,
                request.compare_top_k,
            ),
            request.compare_documents,
        )
        assert isinstance(found, RowsSummary)
        return found

    async def _carry_out(
        self,
        tenant: str,
        spec: TrainSpec,
        ids: tuple[str, str],
        make: Callable[[Sources, Source | None], Order],
        documents: str = "",
    ) -> Checked | RowsSummary:
        records = await asyncio.to_thread(
            lambda: [self._store.datasets.get(id, tenant) if id else None for id in (*ids, spec.replay, documents)]
        )
        _check_documents(records[-1])
        stored = [record for record in records if record is not None]
        large = self._text.folder is not None and sum(record.size_bytes for record in stored) > LARGE

        def work(watch: Watch) -> Checked | RowsSummary:
            with self._store.blobs.holding([record.digest for record in stored]):
                *rows, compared = map(self._source, records)
                order = make(self._sources(spec, rows), compared)
                return (
                    _in_process(order, str(self._text.folder), watch) if large else carry_out(order, self._text, watch)
                )

        def check() -> None:
            for record in stored:
                self._store.datasets.read(record.digest)  # raises, unless a local copy was damaged

        return await retried(check, lambda: compute(work, alone=large))

    def _source(self, record: DatasetRecord | None) -> Source | None:
        return None if record is None else Source(str(self._store.blobs.local_path(record.digest)), record.digest)

    def _sources(self, spec: TrainSpec, found: Sequence[Source | None]) -> Sources:
        limits = self._limits
        data, validation, replay = found
        assert data is not None
        return Sources(
            spec,
            min(spec.max_length or self._info.max_context, limits.max_row_tokens),
            DatasetLimits(limits.max_dataset_bytes, limits.max_dataset_rows),
            data,
            validation,
            replay,
        )


def _check_documents(record: DatasetRecord | None) -> None:
    if record is not None and record.size_bytes > MAX_DOCUMENT_BYTES:
        raise invalid_field(
            DOCUMENTS,
            f"has {record.size_bytes} bytes of documents; at most {MAX_DOCUMENT_BYTES} are taken: "
            "compare with those that matter",
        )


def _in_process(order: Order, tokenizer: str, watch: Watch) -> Checked | RowsSummary:
    with subprocess.Popen(
        [sys.executable, "-m", MODULE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=child_environment(),
        start_new_session=True,  # a Ctrl-C in the terminal is the server's to handle
    ) as child:
        try:
            with watch.ending(child.kill):
                said, _ = child.communicate(msgspec.msgpack.encode(Delivery(order, tokenizer)))
        finally:
            child.kill()
    watch()
    try:
        answer = msgspec.msgpack.decode(said, type=Answer)
    except msgspec.MsgspecError:
        raise _died(child.returncode) from None
    if isinstance(answer, Refused):
        raise answer.error()
    return answer


def _died(status: int) -> Error:
    log.error("a check of a dataset died", exit_status=status)
    return Error(
        Code.RESOURCE_EXHAUSTED if status == -9 else Code.INTERNAL,
        f"the check of the dataset was ended by the system (exit status {status}), perhaps for lack of memory; "
        "the server's log may say more",
        reason="DATASET_CHECK_DIED",
    )
