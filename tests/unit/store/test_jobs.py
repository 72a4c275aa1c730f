"""Jobs: created once, moved by the table of legal moves, told by events without gaps."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from loramux_server.core.callers.principal import Principal
from loramux_server.core.errors import Code, Error
from loramux_server.core.jobs import MOVES, Gate, JobRequest, JobState, TrainEvent, TrainEventType, TrainSpec
from loramux_server.core.types import StackItem
from loramux_server.store.jobs import events as events_module
from loramux_server.store.records import AdapterMeta
from loramux_server.store.schema import jobs
from loramux_server.store.store import Store

Make = Callable[[str], Path]
NEW = JobRequest(
    name="acme",
    dataset_id="ds-1",
    tenant="t",
    spec=TrainSpec(rank=4, layers=(1, 2), target_modules=("q_proj",), max_steps=7),
    validation_dataset_id="ds-2",
    on_top_of=((StackItem("pine@1", 1.3),), ()),
    init_from="acme@1",
    gate=Gate("min_accuracy", 0.5, "contained"),
    compare_prompt="be brief",
    metadata={"who": "me"},
)


def step(n: int) -> TrainEvent:
    return TrainEvent(TrainEventType.STEP, step=n, total_steps=9, metrics={"loss": 1.0 / n})


def to(store: Store, state: JobState) -> str:
    """A new job in ``state``."""
    job = store.jobs.create(NEW)
    for path in itertools.chain.from_iterable(itertools.permutations(JobState, n) for n in range(6)):
        here, ok = JobState.QUEUED, True
        for new in path:
            ok = ok and new in MOVES[here]
            here = new
        if ok and here is state:
            for new in path:
                store.jobs.move(job.id, new)
            return job.id
    raise AssertionError(state)


def test_a_job_is_kept_as_it_was_asked_for(store: Store) -> None:
    job = store.jobs.create(NEW)
    assert job.request == NEW
    assert store.jobs.get(job.id, "t") == job
    assert job.state is JobState.QUEUED


def test_the_same_key_gives_the_same_job(store: Store) -> None:
    keyed = replace(NEW, idempotency_key="k")
    one = store.jobs.create(keyed)
    assert store.jobs.create(keyed).id == one.id
    assert store.jobs.create(replace(keyed, tenant="u")).id != one.id
    with pytest.raises(Error) as caught:
        store.jobs.create(replace(keyed, compare_prompt="else"))
    assert caught.value.code is Code.ALREADY_EXISTS
    assert store.jobs.create(NEW).id != store.jobs.create(NEW).id


def test_threads_with_one_key_make_one_job(store: Store) -> None:
    found: list[str] = []
    start = threading.Barrier(6)

    def create() -> None:
        start.wait()
        found.append(store.jobs.create(replace(NEW, idempotency_key="k")).id)

    threads = [threading.Thread(target=create) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 6
    assert len(set(found)) == 1


@pytest.mark.parametrize("old", JobState)
def test_only_legal_moves(store: Store, old: JobState) -> None:
    job_id = to(store, old)
    for new in set(JobState) - MOVES[old]:
        with pytest.raises(Error) as caught:
            store.jobs.move(job_id, new)
        assert caught.value.code is Code.FAILED_PRECONDITION
    assert store.jobs.get(job_id).state is old


def test_times_attempts_and_errors(store: Store) -> None:
    job = store.jobs.create(NEW)
    store.jobs.move(job.id, JobState.RUNNING)
    store.jobs.move(job.id, JobState.QUEUED)
    running = store.jobs.move(job.id, JobState.RUNNING)
    assert running.attempts == 2
    assert running.started is not None
    failed = store.jobs.move(job.id, JobState.FAILED, error=Error(Code.RESOURCE_EXHAUSTED, "out of memory"))
    assert (failed.error_code, failed.error) == ("RESOURCE_EXHAUSTED", "out of memory")
    assert failed.finished is not None
    events = store.jobs.events(job.id)
    assert store.jobs.get(job.id).last_sequence == failed.last_sequence == len(events) == 5
    again = store.jobs.move(job.id, JobState.QUEUED)
    assert (again.error_code, again.error, again.finished, again.attempts) == ("", "", None, 2)
    store.jobs.move(job.id, JobState.RUNNING)
    full = Error(Code.RESOURCE_EXHAUSTED, "the disk is full", reason="STORAGE_FULL")
    assert store.jobs.move(job.id, JobState.FAILED, error=full).error_code == "STORAGE_FULL"
    assert events[-1].event.message == "out of memory"


def test_events_are_numbered_in_order_without_gaps(store: Store) -> None:
    job = store.jobs.create(NEW)
    store.jobs.move(job.id, JobState.RUNNING)
    for n in (1, 2, 3):
        store.jobs.append_event(job.id, step(n))
    store.jobs.append_event(job.id, TrainEvent(TrainEventType.EVALUATION, metrics={"eval_loss": 0.5}))
    store.jobs.append_event(job.id, step(4))
    store.jobs.move(job.id, JobState.EVALUATING)
    found = store.jobs.events(job.id)
    assert [e.sequence for e in found] == list(range(1, 9))
    assert [e.event.type.value for e in found] == [
        "state", "state", "step", "step", "step", "evaluation", "step", "state",
    ]  # fmt: skip
    assert [e.event.step for e in found] == [0, 0, 1, 2, 3, 0, 4, 0]
    assert found[2].event == step(1)
    assert store.jobs.events(job.id, after=6) == found[6:]
    assert store.jobs.events(job.id, limit=2) == found[:2]
    now = store.jobs.get(job.id)
    assert (now.step, now.total_steps) == (4, 9)
    assert now.metrics == {"loss": 0.25, "eval_loss": 0.5}


def test_the_last_events_are_kept_and_the_last_of_each_type(tmp_path: Path) -> None:
    with closing(Store.open(tmp_path / "state", job_events=3)) as store:
        job = store.jobs.create(NEW)
        store.jobs.append_event(job.id, TrainEvent(TrainEventType.MESSAGE, "first"))
        store.jobs.append_event(job.id, TrainEvent(TrainEventType.MESSAGE, "second"))
        for n in range(1, 9):
            store.jobs.append_event(job.id, step(n))
        assert store.jobs.stored(job.id).step == 8
        told = [(event.sequence, event.event.type.value) for event in store.jobs.events(job.id)]
        assert told == [(1, "state"), (3, "message"), *((n, "step") for n in (9, 10, 11))]
        assert store.jobs.events(job.id, after=10)[0].event == step(8)
        back = [record.sequence for record in store.jobs.events_back(job.id)]
        assert back == [11, 10, 9, 3, 1]
        assert [record.sequence for record in store.jobs.events_back(job.id, 9, limit=1)] == [3]


def test_the_number_of_the_last_event_is_found_for_many_jobs_at_once(store: Store) -> None:
    jobs = [to(store, JobState.RUNNING) for _ in range(2)]
    last = {job: store.jobs.events(job)[-1].sequence for job in jobs}
    assert store.jobs.newest_events([*jobs, "job-none"]) == last
    store.jobs.append_event(jobs[0], step(1))
    store.jobs.flush()
    assert store.jobs.newest_events(jobs) == {**last, jobs[0]: last[jobs[0]] + 1}
    assert store.jobs.newest_events([]) == {}


def test_steps_wait_and_all_else_is_written_at_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events_module, "BATCH_SECONDS", 1e9)
    job = store.jobs.create(NEW)

    def written() -> int:
        with store.database.read() as connection:
            return len(connection.exec_driver_sql("SELECT 1 FROM job_events").all())

    store.jobs.append_event(job.id, step(1))  # the first is due
    store.jobs.append_event(job.id, step(2))
    assert written() == 2
    store.jobs.append_event(job.id, TrainEvent(TrainEventType.MESSAGE, message="hello"))
    assert written() == 4
    store.jobs.append_event(job.id, step(3))
    assert len(store.jobs.events(job.id)) == 5  # a reader sees what waits


def test_a_checkpoint_of_an_earlier_step_does_not_take_the_job_back(store: Store) -> None:
    job = store.jobs.create(NEW)
    store.jobs.append_event(job.id, step(5))
    store.jobs.append_event(job.id, TrainEvent(TrainEventType.CHECKPOINT, "checkpoint at step 4", None, 4, 9))
    assert store.jobs.get(job.id).step == 5
    store.jobs.append_event(job.id, TrainEvent(TrainEventType.MESSAGE, "training goes on after step 4", None, 4, 9))
    assert store.jobs.get(job.id).step == 4


def test_a_state_event_must_go_through_move(store: Store) -> None:
    job = store.jobs.create(NEW)
    with pytest.raises(ValueError, match="move"):
        store.jobs.append_event(job.id, TrainEvent(TrainEventType.STATE, state=JobState.RUNNING))


def test_tenants_do_not_see_each_other(store: Store) -> None:
    job = store.jobs.create(NEW)
    for call in (
        lambda: store.jobs.get(job.id, "u"),
        lambda: store.jobs.events(job.id, viewer="u"),
        lambda: store.jobs.move(job.id, JobState.CANCELLED, viewer="u"),
        lambda: store.jobs.get("job-x" * 1000, "t"),
    ):
        with pytest.raises(Error) as caught:
            call()
        assert caught.value.code is Code.NOT_FOUND
    assert store.jobs.list("u") == ((), "")


def test_a_key_with_a_list_finds_the_jobs_of_its_adapters(store: Store) -> None:
    mine, other = (store.jobs.create(replace(NEW, name=name)) for name in ("mine", "other"))
    key = Principal(NEW.tenant, frozenset(), adapters=frozenset({"mine"}))
    assert [job.id for job in store.jobs.list(key)[0]] == [mine.id]
    assert store.jobs.counts(key) == {JobState.QUEUED: 1}
    assert store.jobs.get(mine.id, key) == mine
    for call in (
        lambda: store.jobs.get(other.id, key),
        lambda: store.jobs.events(other.id, viewer=key),
        lambda: store.jobs.move(other.id, JobState.CANCELLED, viewer=key),
    ):
        with pytest.raises(Error) as caught:
            call()
        assert caught.value.code is Code.NOT_FOUND
    assert store.jobs.get(other.id).state is JobState.QUEUED


def test_pages_newest_first(store: Store) -> None:
    made = [store.jobs.create(NEW).id for _ in range(7)]
    store.jobs.move(made[0], JobState.CANCELLED)
    seen: list[str] = []
    token = ""
    while True:
        page, token = store.jobs.list("t", page_size=3, page_token=token)
        seen += [job.id for job in page]
        if not token:
            break
    assert seen == made[::-1]
    assert [j.id for j in store.jobs.list(states=[JobState.CANCELLED])[0]] == made[:1]
    assert store.jobs.counts() == {JobState.QUEUED: 6, JobState.CANCELLED: 1}
    store.jobs.create(replace(NEW, tenant="someone else"))
    assert store.jobs.counts(NEW.tenant) == {JobState.QUEUED: 6, JobState.CANCELLED: 1}
    assert store.jobs.counts("someone else") == {JobState.QUEUED: 1}
    assert store.jobs.counts("nobody") == {}


def test_what_ran_is_queued_again_at_start(store: Store) -> None:
    ids = {state: to(store, state) for state in JobState}
    again = store.jobs.requeue_interrupted()
    ran = {JobState.RUNNING, JobState.EVALUATING, JobState.PUBLISHING}
    assert {job.id for job in again} == {ids[state] for state in ran}
    for state, job_id in ids.items():
        assert store.jobs.get(job_id).state is (JobState.QUEUED if state in ran else state)
    assert "queued again" in store.jobs.events(ids[JobState.RUNNING])[-1].event.message
    assert store.jobs.requeue_interrupted() == ()


def test_the_result_and_the_success_come_together(store: Store, folder: Make) -> None:
    job_id = to(store, JobState.PUBLISHING)
    version, job = store.publish_job_result(job_id, folder("a"), AdapterMeta(4, 8.0, job_id=job_id))
    assert (job.state, job.adapter) == (JobState.SUCCEEDED, "acme@1")
    assert version.meta.job_id == job_id
    assert store.adapters.resolve("acme", "t").ref == "acme@1"


def test_no_adapter_without_its_success(store: Store, folder: Make) -> None:
    job_id = to(store, JobState.EVALUATING)
    with pytest.raises(Error) as caught:
        store.publish_job_result(job_id, folder("a"), AdapterMeta(4, 8.0))
    assert caught.value.code is Code.FAILED_PRECONDITION
    assert store.adapters.list("t") == ((), "")
    assert len(store.collect_orphans()) == 1


def test_a_request_of_another_version_is_read(store: Store) -> None:
    job = store.jobs.create(NEW)
    document = {"name": "acme", "dataset_id": "ds-1", "tenant": "t", "unheard_of": [1]}
    document["spec"] = {"rank": 4, "layers": [1], "unheard_of": True}
    with store.database.write() as connection:
        connection.execute(jobs.update().values(request=document))
    spec = TrainSpec(rank=4, layers=(1,))
    assert store.jobs.get(job.id).request == JobRequest("acme", "ds-1", "t", spec=spec)


def test_only_jobs_in_these_states_and_for_this_name_are_listed(store: Store) -> None:
    made = [store.jobs.create(replace(NEW, name=name)).id for name in ("a", "b", "a")]
    store.jobs.move(made[2], JobState.CANCELLED)
    assert [job.id for job in store.jobs.list("t", name="a")[0]] == [made[2], made[0]]
    assert [job.id for job in store.jobs.list("t", name="a", states=[JobState.QUEUED, JobState.FAILED])[0]] == made[:1]
    assert store.jobs.list("t", name="c") == ((), "")
    page, token = store.jobs.list("t", name="a", page_size=1)
    assert [job.id for job in page + store.jobs.list("t", name="a", page_token=token)[0]] == [made[2], made[0]]


def test_a_key_means_its_job_however_the_references_are_written(store: Store) -> None:
    made = store.jobs.create(replace(NEW, idempotency_key="k"))
    asked = replace(made.request, on_top_of=((StackItem("pine", 1.3),), ()), init_from="acme", gate=Gate())
    assert store.jobs.made_with(asked) == made
    assert store.jobs.made_with(replace(asked, recipe="facts", given=frozenset())) == made
    assert store.jobs.made_with(replace(asked, idempotency_key="l")) is None
    assert store.jobs.made_with(replace(asked, idempotency_key="")) is None
    others = [
        replace(asked, on_top_of=((StackItem("pine", 1.0),), ())),
        replace(asked, on_top_of=((StackItem("pine@2", 1.3),), ())),
        replace(asked, on_top_of=((StackItem("pine", 1.3),),)),
        replace(asked, init_from=""),
        replace(asked, gate=Gate("none")),
        replace(asked, spec=replace(asked.spec, seed=5)),
    ]
    for other in others:
        with pytest.raises(Error) as caught:
            store.jobs.made_with(other)
        assert caught.value.reason == "IDEMPOTENCY_KEY_REUSED"
