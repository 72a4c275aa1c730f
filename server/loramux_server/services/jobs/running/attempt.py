"""One attempt at a job: the engine's events stored as they come, then the result checked and published."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from loramux.comparison import Comparison, judged

from ....core.jobs import JobState, JudgedRow, TrainCommand, TrainEvent, TrainEventType
from ....core.types import Stack, StackEntry, StackItem
from ....data.rows_file import HELD_OUT, PROMPTED, RETRIEVED, assign_stacks
from ....host.failpoints import reach
from ....host.files import storage_errors, sync_folder, write_durable
from ....peft.schema import CARD_FILE, AdapterConfig
from ....store.records import AdapterMeta, JobRecord, VersionRecord
from ....telemetry.audit import Entry
from ...access.audit import write_down
from ...adapters.publish import candidate, publish, verify_trained
from ...common.context import Context
from ...common.stacks import pinned_items
from ...datasets.stored_rows import StoredRows
from ...evaluation.comparison import PROMPT, RETRIEVAL, compare, with_rows
from ...evaluation.gate import ACCURACY, EXACT_MATCH, failed_because
from ...evaluation.questions import Asker, Question, Reply, accuracy, exact_match, questions, rules, side_by_side
from ..board import JobBoard
from .card import CardFacts, render_card
from .curve import CURVE_FILE, PICTURE_FILE, read_curve, to_csv, to_png

PASSING = frozenset({"learning_rate", "grad_norm", "epoch", "tokens", "tokens_per_second", "eta_seconds"})
"""Figures of a moment, which say nothing about the finished adapter."""


class TrainingRun:
    """What happens between RUNNING and SUCCEEDED."""

    def __init__(self, context: Context, board: JobBoard, job: JobRecord, rows: StoredRows) -> None:
        self._context = context
        self._store, self._text, self._backend = context.store, context.text, context.backend
        self._info, self._limits = context.info, context.limits
        self._audit = context.audit
        self._board = board
        self._job = job
        self._rows = rows
        self._gate = job.request.gate
        self._state = JobState.RUNNING
        self.begun = False
        """Whether the engine has taken the command up."""
        # An earlier attempt told what is not told again.
        self._metrics: dict[str, float] = dict(job.metrics)
        self._answers: tuple[JudgedRow, ...] = ()
        self._steps = self._total = 0

    async def train(self, command: TrainCommand) -> None:
        """Run the command to its end; afterwards the job is EVALUATING. Cancelling this stops the engine's work."""
        async with aclosing(cast("Any", self._backend.train(command))) as events:
            async for event in events:
                await self._take(event)
        await self._evaluating()

    async def question(self, command: TrainCommand) -> None:
        """Where the gate or a comparison looks at answers, or rows say what counts: ask the held-out rows."""
        rows = self._rows
        if not rows.summary.asked:
            return
        asked = await asyncio.to_thread(self._questions, command)
        await asyncio.to_thread(verify_trained, Path(command.output), self._info, self._limits)
        request = self._job.request
        asker = Asker(self._backend, self._text, prefix=f"{self._job.id}-{self._job.fence}", tenant=request.tenant)
        compares = bool(request.compare_prompt or request.compare_documents)
        words, found = "answers", dict[str, float]()
        async with candidate(self._context, request.name, Path(command.output), request.spec.rank) as version:
            over = [Stack((*stack.entries, StackEntry(version))) for stack in command.stacks]
            if compares:
                compared, sides = await self._compared(asker, asked, command, over)
                words, found = compared.verdict, compared.to_metrics()
            else:
                sides = {"adapter": await asker.ask_all(asked, over)}
        replies = sides["adapter"]
        found |= {ACCURACY: accuracy(replies), EXACT_MATCH: exact_match(replies), **rules(asked)}
        found["eval_questions"] = float(len(asked))
        words = f"{words} Judged {judged(found)}." if compares else f"{words}, judged {judged(found)}"
        shown = await asyncio.to_thread(side_by_side, asked, sides, self._text, rows.summary.passages)
        reach("job.answered")
        await self._take(TrainEvent(TrainEventType.EVALUATION, words, None, self._steps, self._total, found, shown))

    def _questions(self, command: TrainCommand) -> list[Question]:
        summary, table = self._rows.summary, self._rows.content.tables[HELD_OUT].assigned(command)
        under = assign_stacks(table.named_stacks, len(command.stacks))
        return questions(
            [table[number] for number in summary.asked],
            [under[number] for number in summary.asked],
            self._text,
            self._info.max_context,
            summary.expects,
        )

    async def _compared(
        self, asker: Asker, asked: list[Question], command: TrainCommand, over: list[Stack]
    ) -> tuple[Comparison, dict[str, list[Reply]]]:
        """Fine-tuning against prompting, retrieval, and the version that the job goes on from."""
        request, tables = self._job.request, self._rows.content.tables
        before = ((PROMPT, request.compare_prompt, PROMPTED), (RETRIEVAL, request.compare_documents, RETRIEVED))
        contexts = {
            name: await asyncio.to_thread(with_rows, asked, tables[table], self._info.max_context)
            for name, given, table in before
            if given
        }
        init = None
        if command.init is not None:
            init = [Stack((*stack.entries, StackEntry(command.init))) for stack in command.stacks]
        found, replies = await compare(asker, asked, contexts, command.stacks, over, init)
        return replace(found, by_heart=self._rows.summary.by_heart), replies

    async def publish(self, command: TrainCommand) -> VersionRecord:
        """Check what the engine wrote, add card and curve, and publish version and success in one transaction.

        A version that fails its gate is published too, but the name does not move to it.
        """
        folder = Path(command.output)
        config = await asyncio.to_thread(verify_trained, folder, self._info, self._limits)
        if self._gate and self._rows.summary.by_heart:
            result = "no held-out row is left to judge by: " + "; ".join(
                note.text for note in self._rows.summary.repeats
            )
        else:
            result = failed_because(self._gate, self._metrics)
        await asyncio.to_thread(self._write_extras, folder, command, result)
        meta = self._meta(command, config, result)
        reach("job.before_publish")
        version, record = await publish(
            self._backend,
            self._store,
            self._job.request.name,
            folder,
            config.rank,
            lambda: self._store.publish_job_result(
                self._job.id, folder, meta, gate_result=result, fence=self._job.fence
            ),
        )
        await write_down(self._audit, self._published(version, promoted=not result))
        self._board.moved(JobState.PUBLISHING, record)
        return version

    def _published(self, version: VersionRecord, promoted: bool) -> Entry:
        """What the audit log has of a job's end: nobody called, and a name may mean something else now."""
        details = {"job": self._job.id, "current": "yes" if promoted else "no"}
        return Entry("publish", version.ref, tenant=self._job.request.tenant, peer="this server", details=details)

    async def _take(self, event: TrainEvent) -> None:
        self.begun = True
        if event.type is TrainEventType.STATE:
            if event.state is JobState.EVALUATING:
                return await self._evaluating()
            # States are the job table's; what the engine adds is that it began, and how many steps it will take.
            event = TrainEvent(TrainEventType.MESSAGE, event.message, None, event.step, event.total_steps)
        self._metrics.update(event.metrics)
        self._answers = event.answers or self._answers
        self._steps, self._total = max(self._steps, event.step), event.total_steps or self._total
        await self._board.append(self._job, event)

    async def _evaluating(self) -> None:
        if self._state is JobState.RUNNING:
            words = "measuring on held-out rows" if self._rows.summary.held_out else "no held-out rows to measure on"
            words = "; ".join([words, *(note.text for note in self._rows.summary.repeats)])
            await self._board.move(self._job.id, JobState.EVALUATING, message=words, fence=self._job.fence)
            self._state = JobState.EVALUATING

    def _meta(self, command: TrainCommand, config: AdapterConfig, gate_result: str) -> AdapterMeta:
        request = self._job.request
        return AdapterMeta(
            rank=config.rank,
            alpha=config.alpha,
            base_fingerprint=self._info.base_fingerprint,
            target_modules=config.target_modules,
            layers=request.spec.layers,
            job_id=self._job.id,
            gate_result=gate_result,
            dataset_digest=self._rows.summary.train_digest,
            parent=request.init_from,
            trained_on=_trained_on(command.stacks),
            asked_with=self._rows.summary.train.asked_with,
            metrics=self._final_metrics(),
            metadata=request.metadata,
        )

    def _write_extras(self, folder: Path, command: TrainCommand, gate_result: str) -> None:
        """The curve and the card, into the adapter's folder."""
        request, rows = self._job.request, self._rows.summary
        curve = read_curve(self._store, self._job.id)
        card = render_card(
            CardFacts(
                job=self._job,
                base_name=self._info.base_name,
                base_fingerprint=self._info.base_fingerprint,
                dataset_digest=rows.train_digest,
                dataset_rows=rows.train.rows,
                validation_digest=rows.held_out_digest,
                validation_rows=rows.held_out.rows if rows.held_out else 0,
                on_top_of=_trained_on(command.stacks),
                steps=self._steps,
                metrics=self._final_metrics(),
                gate_result=gate_result,
                answers=self._answers,
                curve=curve,
                asked_with=rows.train.asked_with,
            )
        )
        with storage_errors("cannot write the model card"):
            files = {CARD_FILE: card.encode(), CURVE_FILE: to_csv(curve).encode()}
            if (picture := to_png(curve, request.name)) is not None:
                files[PICTURE_FILE] = picture
            for name, content in files.items():
                (folder / name).unlink(missing_ok=True)
                write_durable(folder / name, content)
            sync_folder(folder)

    def _final_metrics(self) -> dict[str, float]:
        return {name: value for name, value in self._metrics.items() if name not in PASSING}


def _trained_on(stacks: tuple[Stack, ...]) -> tuple[tuple[StackItem, ...], ...]:
    """The frozen stacks of a command with their versions; none at all for the bare base."""
    return tuple(pinned_items(stack) for stack in stacks) if any(stacks) else ()
