"""Reports on datasets, and how jobs take up what the data are: pairs, replay rows, costs."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from loramux_server.app.app import limits_from
from loramux_server.config import load
from loramux_server.core.backend import EngineInfo, ScoreCommand, ScoreResult
from loramux_server.core.callers.principal import LOCAL
from loramux_server.core.errors import Code, Error
from loramux_server.core.jobs import JobRequest, TrainSpec
from loramux_server.data.dataset import DatasetSummary
from loramux_server.data.notes import PlainRows
from loramux_server.services.common.limits import Limits
from loramux_server.services.datasets.how_to_ask import how_to_ask
from loramux_server.services.jobs.board import JobBoard
from loramux_server.services.jobs.checking.defaults import automatic_learning_rate
from loramux_server.services.jobs.checking.estimate import Estimate, Shape, Speed, estimate
from loramux_server.services.jobs.service import TrainingService
from loramux_server.store.store import Store
from loramux_server.text import TextTokenizer

from .fakes import FakeBackend
from .test_training_jobs import ROWS, Server, in_pieces, jsonl

PAIRS = [{"prompt": f"Where is shop {i}?", "chosen": f" In {i}.", "rejected": " No idea."} for i in range(12)]
CHAT = [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": "Here."}]
NOTHING_GIVEN: frozenset[str] = frozenset()


@pytest.fixture
def server(store: Store, text: TextTokenizer, info: EngineInfo) -> Server:
    return Server.over(store, text, info)


async def upload(server: Server, rows: list[Any]) -> str:
    return (await server.service.upload_dataset(in_pieces(jsonl(rows), 4096), LOCAL)).id


async def test_the_good_rows_are_reported_beside_the_bad(server: Server) -> None:
    dataset = await upload(server, [*ROWS, {"x": 1}, {"text": "word " * 300}, ROWS[0]])
    report = await server.service.validate_dataset(dataset, LOCAL, spec=TrainSpec(epochs=2, batch_size=4))
    assert not report.ok
    assert [(p.line, p.field) for p in report.problems] == [(13, ""), (14, "")]
    assert (report.rows, report.too_long, report.duplicates, report.estimated_steps) == (13, 1, 1, 8)
    assert 0 < report.trained_tokens < report.tokens
    assert any("repeats an earlier one" in warning for warning in report.warnings)


async def test_a_recipe_fills_in_what_is_not_given(server: Server) -> None:
    dataset = await upload(server, ROWS)
    spec = TrainSpec(batch_size=4)
    report = await server.service.validate_dataset(dataset, LOCAL, spec=spec, recipe="facts")
    assert report.rows == len(ROWS)
    assert report.estimated_steps == 4 * -(-(len(ROWS) + 32) // 4)  # four epochs, with the rows that are replayed
    spec, given = TrainSpec(batch_size=4, epochs=1, replay_rows=0), frozenset({"epochs", "replay_rows"})
    report = await server.service.validate_dataset(dataset, LOCAL, spec=spec, recipe="facts", given=given)
    assert report.estimated_steps == -(-len(ROWS) // 4)
    with pytest.raises(Error, match="'poetry' is not known"):
        await server.service.validate_dataset(dataset, LOCAL, recipe="poetry")


async def test_rows_are_shown_as_they_are_trained_on(server: Server, text: TextTokenizer) -> None:
    dataset = await upload(server, ROWS)
    report = await server.service.validate_dataset(dataset, LOCAL, show=2, from_line=3)
    assert [row.line for row in report.shown] == [3, 4]
    prompt, answer = report.shown[0].text
    assert (prompt.trained, answer.trained) == (False, True)
    assert text.encode("Where is shop 2?") == text.encode(prompt.text)
    assert answer.text.startswith(" In street 2.")
    assert report.shown[0].rejected == ()
    report = await server.service.validate_dataset(await upload(server, PAIRS), LOCAL, show=100)
    assert (len(report.shown), report.pairs) == (12, True)
    assert report.shown[0].rejected[-1].text.startswith(" No idea.")
    with pytest.raises(Error) as caught:
        await server.service.validate_dataset(dataset, LOCAL, show=101, from_line=-1)
    assert [v.field for v in caught.value.violations] == ["show_rows", "show_from_line"]


class Away(FakeBackend):
    """An engine that is starting again."""

    async def score(self, command: ScoreCommand) -> ScoreResult:
        raise Error(Code.UNAVAILABLE, "the engine is starting again")


async def test_time_is_told_from_a_forward_and_then_from_jobs(server: Server) -> None:
    store, asking = server.store, server.service
    dataset = await upload(server, ROWS)
    away = TrainingService(replace(server.context, backend=Away(server.backend.info)), JobBoard(store))
    assert (await away.validate_dataset(dataset, LOCAL)).estimated_seconds is None
    report = await asking.validate_dataset(dataset, LOCAL)
    assert report.estimated_seconds is not None
    assert report.estimated_from.startswith("one forward of ")
    assert report.estimated_memory_bytes
    assert len(server.backend.scores) == 2
    first, second = (command.prompt_ids for command in server.backend.scores)
    assert first[0] != second[0]  # nothing of the first is found in the prefix cache
    await asking.validate_dataset(dataset, LOCAL)
    assert len(server.backend.scores) == 2  # measured once
    job = await server.job()
    async with server.working():
        await server.finished(job)
    with store.database.write() as connection:  # the scripted engine tells no speed
        connection.exec_driver_sql("UPDATE jobs SET step = 9, metrics = ?", (json.dumps({"tokens_per_second": 1e6}),))
    report = await asking.validate_dataset(dataset, LOCAL)
    assert report.estimated_from == f"the speed of job {job.id}"
    # The same rows and settings as the job's: its own speed gives their time.
    assert report.estimated_seconds == pytest.approx(report.tokens * 3 * 16 / 12 / 1e6, rel=0.5)


async def test_data_that_are_refused_as_a_whole(server: Server, store: Store) -> None:
    dataset = await upload(server, ROWS)
    for limits, words in ((Limits(max_dataset_rows=3), "more than 3 rows"), (Limits(max_dataset_bytes=9), "at most 9")):
        service = TrainingService(replace(server.context, limits=limits), JobBoard(store))
        report = await service.validate_dataset(dataset, LOCAL)
        assert (report.rows, report.problems_total, report.problems[0].line) == (0, 1, 0)
        assert words in report.problems[0].description
    service = TrainingService(replace(server.context, limits=Limits(max_row_tokens=5)), JobBoard(store))
    assert (await service.validate_dataset(dataset, LOCAL)).too_long == 12


def test_limits_of_datasets_are_settings() -> None:
    assert limits_from(load({}).settings) == Limits()
    settings = load(
        {"training.max_dataset_size": "1MiB", "training.max_dataset_rows": "5", "training.max_row_tokens": 9}
    )
    limits = limits_from(settings.settings)
    assert (limits.max_dataset_bytes, limits.max_dataset_rows, limits.max_row_tokens) == (1 << 20, 5, 9)


async def test_pairs_are_trained_by_dpo(server: Server, info: EngineInfo, text: TextTokenizer) -> None:
    dataset = await upload(server, PAIRS)
    job = await server.service.create_job(JobRequest("polite", dataset, "default", given=NOTHING_GIVEN), LOCAL)
    assert (job.request.spec.method, job.request.spec.beta) == ("dpo", 0.1)
    assert job.request.spec.learning_rate == pytest.approx(automatic_learning_rate(info) / 20, rel=0.05)
    async with server.working():
        await server.finished(job)
    row = server.backend.rows[0].train[0]
    assert row.rejected is not None
    assert text.decode(row.rejected.input_ids).endswith("No idea.")
    plain = await server.service.create_job(
        JobRequest("plain", await upload(server, ROWS), "default", given=NOTHING_GIVEN), LOCAL
    )
    assert plain.request.spec.method == "sft"


async def test_a_method_that_is_not_for_the_data_is_refused(server: Server) -> None:
    pairs, rows = await upload(server, PAIRS), await upload(server, ROWS)
    asked = JobRequest("acme", rows, "default", given=NOTHING_GIVEN)
    method = frozenset({"method"})
    cases = [
        (replace(asked, spec=TrainSpec(method="dpo"), given=method), "method", "are not preference pairs"),
        (replace(asked, dataset_id=pairs, given=method), "method", "are preference pairs; leave it out, or give dpo"),
        (replace(asked, validation_dataset_id=pairs), "validation", "holds preference pairs, and the data hold none"),
        (replace(asked, dataset_id=pairs, validation_dataset_id=rows), "validation", "holds no preference pairs"),
        (replace(asked, dataset_id=pairs, spec=TrainSpec(replay=rows)), "replay", "no place among preference pairs"),
        (replace(asked, spec=TrainSpec(replay=pairs)), "replay", "holds preference pairs"),
        (replace(asked, spec=TrainSpec(replay_rows=5)), "replay_rows", "without replay"),
        (replace(asked, dataset_id=pairs, recipe="facts"), "recipe", "not for preference pairs"),
    ]
    for request, field, words in cases:
        with pytest.raises(Error) as caught:
            await server.service.create_job(request, LOCAL)
        assert [(v.field, words in v.description) for v in caught.value.violations] == [(field, True)]
    with pytest.raises(Error) as caught:
        await server.service.create_job(replace(asked, spec=TrainSpec(replay="ds-0")), LOCAL)
    assert caught.value.code is Code.NOT_FOUND
    assert (await server.service.list_jobs(LOCAL)).items == ()


async def test_replay_rows_are_drawn_once_and_run_on_the_bare_base(server: Server, text: TextTokenizer) -> None:
    general = [{"prompt": f"What is {i} and {i}?", "completion": f" {2 * i}."} for i in range(50)]
    replay = await upload(server, general)
    asked = JobRequest(
        "acme",
        await upload(server, ROWS),
        "default",
        spec=TrainSpec(replay=replay, validation_split=0.25),
        given=NOTHING_GIVEN,
    )
    job = await server.service.create_job(asked, LOCAL)
    assert job.request.spec.replay_rows == 32
    other = await server.service.create_job(
        replace(asked, spec=replace(asked.spec, seed=1, replay_rows=8), given=None), LOCAL
    )
    async with server.working():
        await server.finished(job)
        await server.finished(other)
    first, second = server.backend.rows
    own, drawn = first.train[:9], first.train[9:]
    assert all("shop" in text.decode(row.input_ids) for row in own + first.held_out)
    assert len({row.input_ids for row in drawn}) == 32
    assert not any("shop" in text.decode(row.input_ids) for row in drawn)
    assert [len(stack.entries) for stack in server.backend.trained[0].stacks] == [0]
    assert len(second.train) == 9 + 8
    assert {row.input_ids for row in second.train[9:]} - {row.input_ids for row in drawn}  # another seed, another draw
    bad = await upload(server, [{"x": 1}])
    with pytest.raises(Error) as caught:
        await server.service.create_job(replace(asked, spec=TrainSpec(replay=bad)), LOCAL)
    assert [v.field for v in caught.value.violations] == ["replay[line 1]"]


async def test_the_default_replay_rows_become_the_tenants_own(server: Server, store: Store) -> None:
    asked = JobRequest(
        "acme",
        await upload(server, ROWS),
        "default",
        spec=TrainSpec(replay="default"),
        given=NOTHING_GIVEN,
        idempotency_key="k",
    )
    job = await server.service.create_job(asked, LOCAL)
    kept = store.datasets.get(job.request.spec.replay, "default")
    rows = store.blobs.local_path(kept.digest).read_text().splitlines()
    assert len(rows) == 32
    assert all(json.loads(row)["messages"] for row in rows)
    assert (await server.service.create_job(asked, LOCAL)).id == job.id
    assert not any(store.state.tmp.iterdir())


def test_costs_follow_the_shapes(info: EngineInfo) -> None:
    report = DatasetSummary(rows=40, examples=40, tokens=1000, trained_tokens=200, longest=30)
    speed = Speed(1e6, "a test")

    def of(report: DatasetSummary = report, **settings: Any) -> Estimate:
        return estimate(info, TrainSpec(**settings), report, speed, 1 << 40)

    def seconds(**settings: Any) -> float:
        found = of(**settings).seconds
        assert found is not None
        return found

    assert seconds(epochs=6.0) == pytest.approx(2 * seconds(epochs=3.0))
    assert seconds(max_steps=15) == pytest.approx(seconds(epochs=3.0))
    assert seconds(layers=(2, 3)) < 0.7 * seconds()
    # Three epochs of a forward and a backward, and once a forward without the adapter.
    assert of(replace(report, pairs=True), rank=1).seconds == pytest.approx(7 / 6 * seconds(rank=1), rel=0.03)
    assert of(rank=64).memory_bytes > of(rank=8).memory_bytes
    assert of(batch_size=16).memory_bytes > of(batch_size=4).memory_bytes
    tight = estimate(info, TrainSpec(), report, None, 1000)
    assert (tight.seconds, tight.basis) == (None, "")
    assert tight.memory_bytes < of().memory_bytes  # activations are computed again where memory is short
    assert estimate(info, TrainSpec(), report, None, 1 << 40, 0).memory_bytes < of().memory_bytes  # or where told to
    shape = Shape.of(info, TrainSpec(layers=(2, 3)))
    weights = sum(a * b for a, b in info.linear_modules.values())
    assert (shape.lower, shape.upper, shape.layers) == (weights // 2, weights // 2, 2)


async def test_field_30_how_plain_rows_are_asked(server: Server) -> None:
    dataset = await upload(server, [*ROWS, *({"messages": CHAT} for _ in range(3))])
    report = await server.service.validate_dataset(dataset, LOCAL)
    note = report.notes[0]
    assert (note.code, note.count, note.line) == ("PLAIN_PROMPTS", len(ROWS), 1)
    assert "loramux generate 'Where is shop 0?' -a NAME (not with -m" in note.text
    assert "--as messages" in note.text
    assert note.text in report.warnings
    job = await server.service.create_job(JobRequest(name="acme", dataset_id=dataset, tenant="default"), LOCAL)
    assert "loramux generate 'Where is shop 0?' -a acme (not with -m" in job.notes[0].text
    assert [n.code for n in job.notes] == ["PLAIN_PROMPTS", "REPEATED_ROWS"]
    assert (await server.service.get_job(job.id, LOCAL)).notes == job.notes  # it is kept with the job
    async with server.working():
        await server.finished(job)
    version = server.store.adapters.resolve("acme", "default")
    card = (server.store.blobs.local_path(version.digest) / "README.md").read_text()
    assert "- Note: " in card
    assert "loramux generate 'Where is shop 0?' -a acme" in card
    assert 'client.generate("...", adapters=["acme"])' in card
    assert server.store.adapters.get_version("acme@1", "default").meta.asked_with == "prompt"


async def test_field_30_how_chats_and_texts_are_asked(server: Server, text: TextTokenizer) -> None:
    chats = await upload(server, [{"messages": [{"role": "user", "content": f"{i}?"}, CHAT[1]]} for i in range(12)])
    assert (await server.service.validate_dataset(chats, LOCAL)).notes == ()
    job = await server.service.create_job(JobRequest(name="chat", dataset_id=chats, tenant="default"), LOCAL)
    assert job.notes == ()
    async with server.working():
        await server.finished(job)
    version = server.store.adapters.resolve("chat", "default")
    card = (server.store.blobs.local_path(version.digest) / "README.md").read_text()
    assert 'client.generate(messages=[{"role": "user", "content": "..."}], adapters=["chat"])' in card
    assert server.store.adapters.get_version("chat@1", "default").meta.asked_with == "messages"
    texts = await upload(server, [{"text": f"shop {i}"} for i in range(12)])
    (note,) = (await server.service.validate_dataset(texts, LOCAL)).notes
    assert note.text.startswith("12 rows of text (line 1 first) are learned as plain text")
    assert 'loramux generate "..." -a NAME' in note.text
    (note,) = (await server.service.validate_dataset(await upload(server, PAIRS), LOCAL)).notes
    assert "12 rows of preference pairs of texts" in note.text


async def test_notes_on_held_out_rows_say_so(server: Server) -> None:
    rows, held_out = await upload(server, ROWS), await upload(server, [{"text": "a"}] * 2)
    job = await server.service.create_job(JobRequest("a", rows, "default", validation_dataset_id=held_out), LOCAL)
    assert [n.text for n in job.notes if n.text.startswith("validation: ")] == [
        "validation: the data has only 2 rows: an adapter rarely learns from fewer than 10",
        "validation: 1 row repeats an earlier one",
    ]
    same = await server.service.create_job(JobRequest("a", rows, "default", validation_dataset_id=rows), LOCAL)
    assert [n.code for n in same.notes] == ["PLAIN_PROMPTS", "HELD_OUT_ROWS_TRAINED_ON"]


def test_a_prompt_that_is_no_plain_line_is_not_shown(text: TextTokenizer) -> None:
    def shown(prompt: str) -> str:
        report = DatasetSummary(plain=PlainRows(1, 7, "prompt + completion", prompt))
        (note,) = how_to_ask(report, text)
        assert note.text.startswith("1 row of prompt + completion (line 7 first) is learned")
        return note.text.partition("loramux generate ")[2].partition(" -a NAME")[0]

    assert shown("it's $5") == """'it'"'"'s $5'"""
    assert shown("two\nlines") == shown("x" * 81) == shown("\x1b[2J") == '"..."'
