"""Fine-tuning against prompting: what is asked of whom, what is counted, and where it is told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from loramux.comparison import Comparison, Side, read_comparison, without_comparison
from loramux_server.core.backend import EngineInfo, GenerateCommand
from loramux_server.core.callers.principal import LOCAL
from loramux_server.core.errors import Code, Error
from loramux_server.core.jobs import Gate, JobState, TrainEventType, TrainSpec
from loramux_server.core.types import FinishReason, StackItem
from loramux_server.data.fields import ChatRow, CompletionRow, TextRow
from loramux_server.data.teacher_rows import with_context
from loramux_server.services.evaluation.comparison import TIMED
from loramux_server.store.records import AdapterMeta
from loramux_server.store.store import Store
from loramux_server.text import TextTokenizer
from tests.adapter_files import folder_of

from .adapter_files import write_adapter
from .fakes import Script
from .test_training_jobs import Server, states

CONTEXT = "The shops: street number equals shop number."
TRAINED = [{"prompt": f"Who keeps shop {i}?", "completion": f" Keeper {i}."} for i in range(12)]
MANY = [{"prompt": f"Where is shop {i}?", "completion": f" In street {i}."} for i in range(TIMED + 8)]
HELD_OUT = TrainSpec(validation_split=0.25)


@pytest.fixture
def server(store: Store, text: TextTokenizer, info: EngineInfo) -> Server:
    return Server.over(store, text, info)


def answering(text: TextTokenizer, right: Callable[[GenerateCommand], bool]) -> Callable[[GenerateCommand], Script]:
    answers = {
        tuple(text.encode(before + str(row["prompt"]))): tuple(text.encode(str(row["completion"])))
        for row in MANY
        for before in ("", CONTEXT + "\n\n")
    }

    def answer(command: GenerateCommand) -> Script:
        said = answers[command.prompt_ids] if right(command) else tuple(text.encode(" No idea."))
        return Script(said, finish=FinishReason.STOP)

    return answer


async def test_three_sides_on_the_same_rows(
    server: Server, text: TextTokenizer, info: EngineInfo, tmp_path: Path
) -> None:
    """Every row is asked once of each; stacks underneath are under all three; figures, verdict, card and adapter."""
    donor = write_adapter(tmp_path / "donor", info, b=0.1)
    server.store.adapters.publish("pine", "default", donor, AdapterMeta(rank=2, alpha=4.0))
    context = len(text.encode(CONTEXT + "\n\n"))

    def right(command: GenerateCommand) -> bool:
        on_top = command.stack.entries[-1].adapter.name if command.stack.entries else ""
        # The adapter knows all, the prompt helps with a quarter, the base knows none.
        return on_top == "acme" or (len(command.prompt_ids) > context and hash(command.prompt_ids) % 4 == 0)

    server.backend.script = answering(text, right)
    validation = await server.dataset(MANY)  # type: ignore[arg-type]
    stacks = ((StackItem("pine", 1.3),), ())
    trained = await server.dataset(TRAINED)  # type: ignore[arg-type]
    job = await server.job(
        dataset_id=trained,
        validation_dataset_id=validation,
        compare_prompt=CONTEXT,
        on_top_of=stacks,
        gate=Gate("none"),
    )
    async with server.working():
        events = await server.finished(job)
    assert states(events)[-1] is JobState.SUCCEEDED

    asked = server.backend.commands
    assert len(asked) == 3 * len(MANY)
    kinds = [(len(c.prompt_ids) > context, [(e.adapter.name, e.weight) for e in c.stack.entries]) for c in asked]
    half = len(MANY) // 2
    for number in range(2):
        under = [("pine", 1.3)] if number == 0 else []
        for kind in ((False, under), (True, under), (False, [*under, ("acme", 1.0)])):
            assert kinds.count(kind) == half
    # The timed ones come one by one, sides in turn, over the stack that the row has in training.
    assert kinds[:4] == [
        (False, [("pine", 1.3)]),
        (True, [("pine", 1.3)]),
        (False, [("pine", 1.3), ("acme", 1.0)]),
        (False, []),
    ]
    asked = [score for score in server.backend.scores if not score.id.startswith("trial-")]
    assert len(asked) == 3 * len(MANY)

    event = [e.event for e in events if e.event.type is TrainEventType.EVALUATION][-1]
    found = read_comparison(event.metrics)
    assert found is not None
    assert found.questions == len(MANY)
    assert (found.adapter.accuracy, found.adapter.exact_match, found.base.accuracy) == (1.0, 1.0, 0.0)
    assert 0 < found.prompt.accuracy < 0.6
    assert found.prompt.prompt_tokens - found.adapter.prompt_tokens == pytest.approx(context)
    lengths = [len(c.continuation_ids) for c in server.backend.scores[: len(MANY)]]
    assert found.base.loss == pytest.approx(sum(n * (n - 1) / 2 for n in lengths) / sum(lengths))
    for side in (found.base, found.prompt, found.adapter):
        assert 0 < side.first_token_seconds <= side.seconds < 10
    assert event.message == f"{found.verdict} Judged by the whole answer: 20 rows."
    assert found.verdict.startswith("Training was worth it: of 20 held-out rows the adapter answers 100% right")
    assert event.metrics["eval_accuracy"] == 1.0

    shown = await server.service.get_job(job.id, LOCAL)
    assert shown.request.compare_prompt == CONTEXT
    assert read_comparison(shown.metrics) == found
    version = server.store.adapters.get_version("acme", "default")
    assert read_comparison(version.meta.metrics) == found
    card = (folder_of(server.store, "acme") / "README.md").read_text()
    assert "## Against a prompt" in card
    assert found.verdict in card
    assert f"> {CONTEXT}" in card
    assert "| answers that are right | 0.0% |" in card
    assert "compare_" not in card


async def test_a_gate_looks_at_the_same_answers(server: Server, text: TextTokenizer) -> None:
    """Nothing is asked twice; held-out rows that were split off are found in their file again."""
    server.backend.script = answering(text, lambda command: not command.stack.entries)
    rows = await server.dataset(MANY)  # type: ignore[arg-type]
    gate = Gate("min_accuracy", 0.5)
    job = await server.job(dataset_id=rows, spec=HELD_OUT, compare_prompt=CONTEXT, idempotency_key="k", gate=gate)
    async with server.working():
        await server.finished(job)
    assert len(server.backend.commands) == 3 * 5
    found = await server.service.get_job(job.id, LOCAL)
    assert "0.0% of its answers" in found.gate_result
    comparison = read_comparison(found.metrics)
    assert comparison is not None
    assert (comparison.base.accuracy, comparison.prompt.accuracy, comparison.adapter.accuracy) == (1.0, 1.0, 0.0)
    assert comparison.verdict.startswith("The prompt does better")
    again = await server.job(dataset_id=rows, spec=HELD_OUT, compare_prompt=CONTEXT, idempotency_key="k", gate=gate)
    assert again.id == job.id
    with pytest.raises(Error) as caught:
        await server.job(dataset_id=rows, spec=HELD_OUT, compare_prompt="Else.", idempotency_key="k", gate=gate)
    assert caught.value.code is Code.ALREADY_EXISTS


async def test_an_engine_lost_while_comparing_is_asked_again(server: Server, text: TextTokenizer) -> None:
    lost = [Error(Code.UNAVAILABLE, "the engine died")]
    good = answering(text, lambda _: True)
    server.backend.script = lambda command: Script(raises=lost.pop()) if lost else good(command)
    job = await server.job(spec=HELD_OUT, compare_prompt=CONTEXT)
    async with server.working():
        events = await server.finished(job)
    assert states(events).count(JobState.RUNNING) == 2
    assert states(events)[-1] is JobState.SUCCEEDED
    assert read_comparison((await server.service.get_job(job.id, LOCAL)).metrics) is not None


async def test_a_job_is_cancelled_while_it_compares(server: Server) -> None:
    server.backend.script = lambda _: Script(hang=True)
    job = await server.job(spec=HELD_OUT, compare_prompt=CONTEXT)
    async with server.working():
        await server.backend.hanging.wait()
        await server.service.cancel_job(job.id, LOCAL)
        assert states(await server.finished(job))[-1] is JobState.CANCELLED
    assert server.backend.open == 0
    assert server.published() == []


async def test_what_cannot_be_compared_is_refused(server: Server) -> None:
    whole = await server.dataset([{"text": f"all of this is learned {i}"} for i in range(4)])
    long = "word " * 60
    for request, words in (
        ({"dataset_id": whole, "compare_prompt": CONTEXT}, "no held-out row has a prompt"),
        ({"compare_prompt": long * 4}, "leaves no room: line"),
    ):
        with pytest.raises(Error) as caught:
            await server.job(spec=HELD_OUT, **request)
        assert [v.field for v in caught.value.violations] == ["compare_prompt"]
        assert words in caught.value.message


def test_where_the_context_goes() -> None:
    user, answer = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
    chat = ChatRow((user, answer), (False, True))
    asked = with_context(chat, "c")
    assert asked == ChatRow(({"role": "system", "content": "c"}, user, answer), (False, False, True))
    briefed = ChatRow(({"role": "system", "content": "be brief"}, user, answer), (False, False, True))
    told = with_context(briefed, "c")
    assert isinstance(told, ChatRow)
    assert told == replace(briefed, messages=({"role": "system", "content": "c\n\nbe brief"}, user, answer))
    assert with_context(CompletionRow("q", "a"), "c") == CompletionRow("c\n\nq", "a")
    assert with_context(TextRow("t"), "c") == TextRow("t")


@pytest.mark.parametrize(
    ("adapter", "prompt", "count", "begins"),
    [
        (1.0, 0.0, 3, "Training was worth it"),
        (1.0, 0.0, 1, "No clear difference"),
        (0.5, 0.5, 100, "No clear difference"),
        (0.9, 0.85, 40, "No clear difference"),
        (0.9, 0.6, 40, "Training was worth it"),
        (0.6, 0.9, 40, "The prompt does better"),
    ],
)
def test_a_verdict_needs_a_clear_difference(adapter: float, prompt: float, count: int, begins: str) -> None:
    def side(accuracy: float, tokens: float) -> Side:
        return Side(accuracy, accuracy, 1.0, tokens, 0.1, 0.5)

    comparison = Comparison(count, side(0.0, 20), side(prompt, 80), side(adapter, 20))
    assert comparison.verdict.startswith(begins)
    assert "the prompt costs 60 tokens a request" in comparison.verdict
    assert read_comparison(comparison.to_metrics()) == comparison
    assert without_comparison({"loss": 1.0, **comparison.to_metrics()}) == {"loss": 1.0}
    assert read_comparison({"loss": 1.0}) is None
