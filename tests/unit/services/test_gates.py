"""Gates: a version that fails is published as a candidate with the reason, and the name stays where it was."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from loramux_server.core.backend import EngineInfo, GenerateCommand
from loramux_server.core.callers.principal import LOCAL
from loramux_server.core.errors import Code, Error
from loramux_server.core.jobs import Gate, JobState, TrainEventType, TrainRow, TrainSpec
from loramux_server.core.types import FinishReason, StackItem
from loramux_server.data.dataset import Example
from loramux_server.data.fields import CompletionRow
from loramux_server.services.datasets.held_out import MAX_QUESTIONS, rows_to_ask
from loramux_server.services.evaluation.gate import failed_because
from loramux_server.services.evaluation.questions import questions
from loramux_server.store.records import AdapterMeta
from loramux_server.store.store import Store
from loramux_server.text import TextTokenizer
from tests.adapter_files import folder_of

from .adapter_files import write_adapter
from .fakes import Script
from .test_training_jobs import ROWS, Server, states

NAN = float("nan")
HELD_OUT = TrainSpec(validation_split=0.25)


@pytest.fixture
def server(store: Store, text: TextTokenizer, info: EngineInfo) -> Server:
    return Server.over(store, text, info)


@pytest.mark.parametrize(
    ("gate", "metrics", "reason"),
    [
        (Gate(), {}, ""),
        (Gate("improves"), {"eval_loss": 1.0, "base_loss": 2.0}, ""),
        (Gate("improves"), {"eval_loss": 2.0, "base_loss": 2.0}, "the base"),
        (Gate("improves"), {"eval_loss": 1.0, "base_loss": 2.0, "current_loss": 0.9}, "the current version"),
        (Gate("improves"), {"eval_loss": 0.8, "base_loss": 2.0, "current_loss": 0.9}, ""),
        (Gate("improves"), {"eval_loss": 1.0, "base_loss": 2.0, "init_loss": 1.0}, "the version that it started from"),
        (Gate("improves"), {"eval_loss": 0.99999, "base_loss": 2.0, "current_loss": 1.0}, "the current version"),
        (Gate("improves"), {"eval_loss": 0.999, "base_loss": 2.0, "current_loss": 1.0, "init_loss": 1.0}, ""),
        (Gate("improves"), {"eval_loss": NAN, "base_loss": 2.0}, "nan"),
        (Gate("improves"), {}, "nan"),
        (Gate("min_accuracy", 0.9, "contained"), {"eval_accuracy": 0.9, "eval_exact_match": 0.0}, ""),
        (Gate("min_accuracy", 0.9, "contained"), {"eval_accuracy": 0.5}, "50.0%"),
        (Gate("min_accuracy", 0.9, "contained"), {}, "nan"),
        (Gate("min_accuracy", 0.9, "exact"), {"eval_accuracy": 0.9, "eval_exact_match": 0.8}, "are the expected text"),
        (Gate("min_accuracy", 0.9, "exact"), {"eval_exact_match": 0.9}, ""),
    ],
)
def test_what_passes(gate: Gate, metrics: dict[str, float], reason: str) -> None:
    found = failed_because(gate, metrics)
    assert (reason in found) if reason else found == ""


def test_no_gate_and_none_are_the_same() -> None:
    assert Gate().settled(False) == Gate("none", 0.5).settled(True) == Gate()
    assert Gate("improves", 0.5, "exact").settled(False) == Gate("improves") == Gate().settled(True)
    assert Gate("min_accuracy", 0.5).settled(False) == Gate("min_accuracy", 0.5, "contained")
    assert not Gate("none").settled(False)


async def test_a_version_that_passes_takes_the_name(server: Server) -> None:
    job = await server.job(spec=HELD_OUT, gate=Gate("improves"))
    async with server.working():
        await server.finished(job)
    info = await server.service.get_job(job.id, LOCAL)
    assert (info.request.gate, info.gate_result) == (Gate("improves"), "")
    assert server.store.adapters.resolve("acme", "default").ref == "acme@1"


async def test_a_version_that_fails_is_kept_as_a_candidate(server: Server, info: EngineInfo, tmp_path: Path) -> None:
    """The reason is in the job, its events and the card; the version answers under its number only."""
    made = write_adapter(tmp_path / "made", info, b=0.1)
    server.store.adapters.publish("acme", "default", made, AdapterMeta(rank=2, alpha=4.0))
    server.training.measured["current_loss"] = 0.2
    job = await server.job(spec=HELD_OUT, gate=Gate("improves"))
    async with server.working():
        events = await server.finished(job)
    assert states(events)[-1] is JobState.SUCCEEDED
    (command,) = server.backend.trained
    assert command.current is not None
    assert command.current.ref == "acme@1"
    found = await server.service.get_job(job.id, LOCAL)
    assert found.published is not None
    assert found.published.ref == "acme@2"
    assert "0.25 is not below 0.2, that of the current version" in found.gate_result
    assert "acme@2 is kept as a candidate" in events[-1].event.message
    assert found.gate_result in events[-1].event.message
    assert server.store.adapters.resolve("acme", "default").ref == "acme@1"
    candidate = server.store.adapters.resolve("acme@2", "default")
    card = (server.store.blobs.local_path(candidate.digest) / "README.md").read_text()
    assert found.gate_result in card
    assert "| Held-out loss of the version before | 0.2 |" in card


async def test_a_first_version_that_fails_has_no_promoted_name(server: Server) -> None:
    server.training.measured.update(eval_loss=3.0)
    job = await server.job(spec=HELD_OUT, gate=Gate("improves"))
    async with server.working():
        await server.finished(job)
    with pytest.raises(Error) as caught:
        server.store.adapters.resolve("acme", "default")
    assert caught.value.reason == "ADAPTER_NOT_PROMOTED"
    assert server.store.adapters.resolve("acme@1", "default").ref == "acme@1"


@pytest.mark.parametrize(
    ("right", "least", "match", "passes"),
    [
        (3, 1.0, "contained", True),
        (2, 0.5, "contained", True),
        (2, 0.9, "contained", False),
        (3, 1.0, "exact", False),
        (3, 0.6, "exact", True),
    ],
)
async def test_answers_are_asked_of_the_engine(
    server: Server, text: TextTokenizer, right: int, least: float, match: str, passes: bool
) -> None:
    """Prompts of the held-out rows, through the new adapter; the expected text in the answer counts."""
    held_out = [{"prompt": f"Which street has shop {i}?", "completion": f" In street {i}."} for i in range(3)]
    expected = {
        tuple(text.encode(str(row["prompt"]))): str(row["completion"]) if i < right else " nowhere"
        for i, row in enumerate(held_out)
    }

    def answer(command: GenerateCommand) -> Script:
        (entry,) = command.stack.entries
        trained = Path(server.backend.trained[0].output)
        for name, data in server.store.blobs.reader.read(entry.adapter.digest).items():
            assert data == (trained / name).read_bytes()
        said = expected[command.prompt_ids] + (" Come in." if command.prompt_ids == next(iter(expected)) else "")
        return Script(tuple(text.encode(said)), finish=FinishReason.STOP)

    server.backend.script = answer
    validation = await server.dataset(held_out)  # type: ignore[arg-type]
    gate = Gate("min_accuracy", least, match)
    job = await server.job(validation_dataset_id=validation, gate=gate)
    async with server.working():
        events = await server.finished(job)
    assert len(server.backend.commands) == 3
    for command in server.backend.commands:
        (entry,) = command.stack.entries
        assert server.store.blobs.holds(entry.adapter.digest)
        assert command.sampling.temperature == 0
    digest = server.backend.commands[0].stack.entries[0].adapter.digest
    assert server.backend.unloaded == [digest]
    assert server.context.unused.is_set()
    assert server.store.collect_orphans() == (digest,)  # nothing else is left of the questions
    measured = [e.event.metrics for e in events if e.event.type is TrainEventType.EVALUATION][-1]
    assert measured == pytest.approx(
        {
            "eval_accuracy": right / 3,
            "eval_exact_match": (right - 1) / 3,
            "eval_questions": 3,
            "judged_answer_contained": 3,
        }
    )
    found = await server.service.get_job(job.id, LOCAL)
    assert (found.request.gate, found.gate_result == "") == (gate.settled(True), passes)
    assert found.published is not None
    assert found.published.meta.gate_result == found.gate_result


async def test_an_engine_lost_while_it_answers_is_asked_again(server: Server, text: TextTokenizer) -> None:
    lost = [Error(Code.UNAVAILABLE, "the engine died")]
    answers = {tuple(text.encode(str(row["prompt"]))): tuple(text.encode(str(row["completion"]))) for row in ROWS}

    def answer(command: GenerateCommand) -> Script:
        if lost:
            return Script(raises=lost.pop())
        return Script(answers[command.prompt_ids], finish=FinishReason.STOP)

    server.backend.script = answer
    job = await server.job(spec=HELD_OUT, gate=Gate("min_accuracy", 1.0))
    async with server.working():
        events = await server.finished(job)
    assert states(events).count(JobState.RUNNING) == 2
    assert states(events)[-1] is JobState.SUCCEEDED
    assert (await server.service.get_job(job.id, LOCAL)).gate_result == ""


async def test_a_gate_on_answers_needs_questions(server: Server) -> None:
    rows = [{"text": f"all of this is learned {i}"} for i in range(4)]
    dataset = await server.dataset(rows)  # type: ignore[arg-type]
    with pytest.raises(Error) as caught:
        await server.job(dataset_id=dataset, spec=HELD_OUT, gate=Gate("min_accuracy", 0.5))
    assert [v.field for v in caught.value.violations] == ["gate"]


def test_the_last_answer_of_a_conversation_is_asked_for(text: TextTokenizer) -> None:
    ids = (*tuple(text.encode("Hello. The shop is in the harbour street.")), 2)
    labels = (False, True, True) + (False,) * (len(ids) - 7) + (True,) * 4
    example = Example(1, TrainRow(ids, labels), CompletionRow("Where?", "There."))
    assert rows_to_ask([example], text) == [0]
    (found,) = questions([example.row], [1], text, 512, [None])
    assert (found.prompt_ids, found.expected_ids, found.stack) == (ids[:-4], ids[-4:], 1)
    assert found.expected == text.decode(ids[-4:]).strip()
    assert rows_to_ask([example] * (3 * MAX_QUESTIONS), text) == list(range(0, 3 * MAX_QUESTIONS, 3))


async def test_the_key_knows_the_gate(server: Server) -> None:
    job = await server.job(spec=HELD_OUT, gate=Gate("improves"), idempotency_key="k")
    again = await server.job(spec=HELD_OUT, gate=Gate("improves"), idempotency_key="k")
    assert again.id == job.id
    with pytest.raises(Error) as caught:
        await server.job(spec=HELD_OUT, gate=Gate("none"), idempotency_key="k")
    assert caught.value.code is Code.ALREADY_EXISTS


async def test_held_out_rows_are_split_off(server: Server) -> None:
    """A quarter of the different rows; rows that say the same are on one side; the same again for the same seed."""
    rows = [*ROWS, *ROWS[:6]]
    job = await server.job(dataset_id=await server.dataset(rows), spec=HELD_OUT)  # type: ignore[arg-type]
    async with server.working():
        await server.finished(job)
    (rows_,) = server.backend.rows
    kept, held_out = ({r.input_ids for r in part} for part in rows_)
    assert len(held_out) == 3
    assert len(kept) == 9
    assert not kept & held_out
    assert len(rows_.train) + len(rows_.held_out) == len(rows)
    card = (folder_of(server.store, "acme") / "README.md").read_text()
    assert f"Held-out rows: {len(rows_.held_out)}" in card


async def test_a_job_that_goes_on_from_a_version(server: Server, info: EngineInfo, tmp_path: Path) -> None:
    """What is not given is that version's; what is given must be; the name may move on later."""
    made = write_adapter(tmp_path / "made", info, b=0.1)
    server.store.adapters.publish("acme", "default", made, AdapterMeta(rank=2, alpha=4.0))
    nothing: frozenset[str] = frozenset()
    job = await server.job(init_from="acme", given=nothing, idempotency_key="k")
    assert job.request.init_from == "acme@1"
    assert (job.request.spec.rank, job.request.spec.alpha, job.request.spec.target_modules) == (2, 4.0, ("q_proj",))
    async with server.working():
        await server.finished(job)
    (command,) = server.backend.trained
    assert command.init is not None
    assert command.init.ref == "acme@1"
    assert server.store.adapters.get_version("acme", "default").meta.parent == "acme@1"
    assert (await server.job(init_from="acme", given=nothing, idempotency_key="k")).id == job.id
    for spec, fields in (
        (TrainSpec(rank=2, alpha=4.0), ["target_modules"]),
        (TrainSpec(rank=4, alpha=4.0, target_modules=("q_proj",)), ["rank"]),
        (TrainSpec(rank=2, alpha=8.0, rslora=True, target_modules=("q_proj",)), ["alpha", "rslora"]),
        (TrainSpec(rank=2, alpha=4.0, target_modules=("q_proj",), layers=(1,)), ["target_modules"]),
    ):
        with pytest.raises(Error) as caught:
            await server.job(init_from="acme", spec=spec)
        assert caught.value.code is Code.INVALID_ARGUMENT
        assert [v.field for v in caught.value.violations] == fields
    with pytest.raises(Error) as caught:
        await server.job(init_from="nobody", given=nothing)
    assert caught.value.code is Code.NOT_FOUND


@pytest.mark.parametrize(
    ("shape", "rate"),
    [((100, 100), 3e-3), ((14_500, 16_000), 2e-4), ((50_000, 50_000), 1e-4)],
    ids=["tiny", "7B", "70B"],
)
async def test_the_rate_follows_the_size_of_the_base(
    server: Server, info: EngineInfo, text: TextTokenizer, shape: tuple[int, int], rate: float
) -> None:
    base = replace(info, linear_modules=dict.fromkeys(info.linear_modules, shape))
    other = Server.over(server.store, text, base)
    job = await other.job(given=frozenset({"rank"}))
    assert job.request.spec.learning_rate == pytest.approx(rate, rel=0.1)
    assert (await other.job(given=frozenset({"learning_rate"}))).request.spec.learning_rate == TrainSpec().learning_rate


async def test_stacks_underneath_are_under_the_answers_too(
    server: Server, info: EngineInfo, text: TextTokenizer, tmp_path: Path
) -> None:
    donor = write_adapter(tmp_path / "donor", info, b=0.1)
    server.store.adapters.publish("pine", "default", donor, AdapterMeta(rank=2, alpha=4.0))
    server.backend.script = lambda _: Script(tuple(text.encode("x")), finish=FinishReason.STOP)
    stacks = ((StackItem("pine", 1.3),), ())
    job = await server.job(spec=HELD_OUT, on_top_of=stacks, gate=Gate("min_accuracy", 0.1))
    async with server.working():
        await server.finished(job)
    under = [[(e.adapter.name, e.weight) for e in c.stack.entries] for c in server.backend.commands]
    assert under == [[("pine", 1.3), ("acme", 1.0)], [("acme", 1.0)], [("pine", 1.3), ("acme", 1.0)]]
    assert (
        json.loads(json.dumps(server.store.adapters.get_version("acme@1", "default").meta.metrics))["eval_accuracy"]
        == 0
    )


NEW = [{"prompt": f"Which street has shop {i}?", "completion": f" In street {i}."} for i in range(4)]


@pytest.mark.parametrize(("gate", "promoted"), [("", False), ("none", True), ("improves", False)])
async def test_field_32_a_worse_version_does_not_take_the_name(
    server: Server, info: EngineInfo, tmp_path: Path, gate: str, promoted: bool
) -> None:
    """Where there are held-out rows, who asks for nothing gets the gate improves; what the name meant is told."""
    made = write_adapter(tmp_path / "made", info, b=0.1)
    server.store.adapters.publish("acme", "default", made, AdapterMeta(rank=2, alpha=4.0))
    server.training.measured["current_loss"] = 0.2
    validation = await server.dataset(NEW)  # type: ignore[arg-type]
    job = await server.job(validation_dataset_id=validation, gate=Gate(gate), idempotency_key="k")
    assert job.request.gate.kind == ("" if promoted else "improves")
    assert (await server.job(validation_dataset_id=validation, gate=Gate(gate), idempotency_key="k")).id == job.id
    async with server.working():
        events = await server.finished(job)
    found = await server.service.get_job(job.id, LOCAL)
    assert found.replaced == "acme@1"
    assert (found.gate_result == "") is promoted
    assert server.store.adapters.resolve("acme", "default").ref == ("acme@2" if promoted else "acme@1")
    assert ("acme now means it (was acme@1)" if promoted else "acme still means acme@1") in events[-1].event.message


async def test_without_held_out_rows_there_is_no_gate(server: Server) -> None:
    job = await server.job()
    assert not job.request.gate


async def test_field_31_no_gate_and_no_verdict_by_training_rows(server: Server, text: TextTokenizer) -> None:
    """They are counted and left out; where no others are left, nothing is decided by them."""
    server.backend.script = lambda _: Script(tuple(text.encode(" In street 1.")), finish=FinishReason.STOP)
    mixed = await server.dataset([*ROWS[:2], {"prompt": "Where is shop 3?", "completion": " Here."}, *NEW])  # type: ignore[list-item]
    dataset = await server.dataset()
    report = await server.service.validate_dataset(dataset, LOCAL, validation_id=mixed)
    assert {n.code: n.count for n in report.notes if "HELD_OUT" in n.code} == {
        "HELD_OUT_ROWS_TRAINED_ON": 2,
        "HELD_OUT_PROMPTS_TRAINED_ON": 1,
    }
    job = await server.job(validation_dataset_id=mixed)
    assert {n.count for n in job.notes if "HELD_OUT" in n.code} == {1, 2}
    same = await server.dataset(ROWS[:3])  # type: ignore[arg-type]
    by_heart = await server.job(validation_dataset_id=same, gate=Gate("improves"), compare_prompt="Be brief.")
    quiet = await server.job(validation_dataset_id=same)
    assert not quiet.request.gate
    async with server.working():
        await server.finished(job)
        events = await server.finished(by_heart)
    assert len(server.backend.rows[0].held_out) == len(NEW)
    found = await server.service.get_job(by_heart.id, LOCAL)
    assert found.gate_result.startswith("no held-out row is left to judge by: 3 of 3 held-out rows are training rows")
    told = [e.event.message for e in events if e.event.type is TrainEventType.EVALUATION][-1]
    assert told.startswith("No verdict, because all held-out rows are training rows")
    assert found.published is not None
    card = (folder_of(server.store, found.published.ref) / "README.md").read_text()
    assert "3 of 3 held-out rows are training rows" in card
    assert "worth it" not in card


async def test_field_33_answers_are_judged_by_what_the_rows_expect(server: Server, text: TextTokenizer) -> None:
    """The fact counts, not the sentence: for every side alike, and it is told how."""
    rows = [row | {"expect": f"street {i}"} for i, row in enumerate(NEW[:3])] + NEW[3:]

    def answer(command: GenerateCommand) -> Script:
        said = " You find it in street 1, I think." if command.stack.entries else " No idea."
        return Script(tuple(text.encode(said)), finish=FinishReason.STOP)

    server.backend.script = answer
    validation = await server.dataset(rows)  # type: ignore[arg-type]
    gate = Gate("min_accuracy", 0.2)
    job = await server.job(validation_dataset_id=validation, compare_prompt="Be brief.", gate=gate)
    async with server.working():
        events = await server.finished(job)
    found = await server.service.get_job(job.id, LOCAL)
    assert found.gate_result == ""
    assert found.metrics["eval_accuracy"] == found.metrics["compare_adapter_accuracy"] == 0.25
    event = [e.event for e in events if e.event.type is TrainEventType.EVALUATION][-1]
    assert event.message.endswith("Judged by expect, contained: 3 rows; by the whole answer: 1 row.")
    assert event.answers == found.answers
    right = next(row for row in found.answers if row.answers["adapter"].right)
    assert right.expected == ("street 1",)
    assert [(side, a.text, a.right) for side, a in right.answers.items()] == [
        ("base", "No idea.", False),
        ("prompt", "No idea.", False),
        ("adapter", "You find it in street 1, I think.", True),
    ]
    assert (
        len({c.sampling for c in server.backend.commands if c.prompt_ids == server.backend.commands[0].prompt_ids}) == 1
    )
    card = (folder_of(server.store, "acme") / "README.md").read_text()
    assert "Judged by expect, contained: 3 rows; by the whole answer: 1 row." in card
    assert "| You find it in street 1, I think. (right) |" in card


async def test_what_is_expected_is_checked_in_held_out_rows_only(server: Server) -> None:
    rows = await server.dataset([row | {"expect": 5} for row in ROWS])  # type: ignore[list-item]
    assert (await server.job(dataset_id=rows)).id
    for request in ({"validation_dataset_id": rows}, {"dataset_id": rows, "spec": HELD_OUT}):
        with pytest.raises(Error, match="expect must be a string or a list"):
            await server.job(**request)
