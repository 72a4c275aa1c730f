"""Commands that no front sends, on the real loop: each fails alone, as a whole sentence, and the engine goes on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from loramux_server.core.backend import GenerateCommand, ScoreCommand
from loramux_server.core.errors import Code
from loramux_server.core.jobs import RowsFile, Stored, TrainCommand, TrainRow, TrainSpec
from loramux_server.core.types import AdapterVersion, SamplingParams, Stack, StackEntry
from loramux_server.engine.transport.protocol import LoadCommand, PinCommand, UnloadCommand
from loramux_server.engine.transport.wire import Unreadable
from tests.engine import Engine, check_tokens, command, stack_of
from tests.examples import examples
from tests.rows import train_command
from tests.tensor.engine_cases import Case, Cases, check_empty, make_cases

NAN, INF = float("nan"), float("inf")
NUMBERS = count()
"""Commands of all examples have ids of their own."""


@pytest.fixture(scope="module")
def cases(tiny_base, make_adapter, tmp_path_factory) -> Iterator[Cases]:  # type: ignore[no-untyped-def]
    made = make_cases(tiny_base("llama"), tmp_path_factory.mktemp("commands"), make_adapter)
    yield made
    made.close()


@pytest.fixture(scope="module")
def engine(cases: Cases) -> Engine:
    return cases.engine()


# -- adapters ---------------------------------------------------------------------------------------------------------


def bad_versions(good: AdapterVersion) -> dict[str, AdapterVersion]:
    return {
        "no digest": replace(good, digest="../" + good.digest[3:]),
        "empty": replace(good, digest=""),
        "upper case": replace(good, digest=good.digest.upper()),
        "rank 0": replace(good, rank=0),
        "rank -1": replace(good, rank=-1),
        "rank 2^62": replace(good, rank=2**62),
        "version -1": replace(good, version=-1),
        "long name": replace(good, name="x" * 10_000),
    }


def test_bad_adapters_are_refused_wherever_they_are_named(cases: Cases, engine: Engine, tmp_path: Path) -> None:
    good = cases.versions["all"]
    rows, spec, output = (TrainRow((3, 4, 5), (True,) * 3),), TrainSpec(rank=2), str(tmp_path / "out")
    for name, bad in bad_versions(good).items():
        stack = stack_of((cases.versions["rs"], 1.0), (bad, 1.0))
        asked = {
            "generate": command(f"generate {name}", (3, 4), 2, stack),
            "score": ScoreCommand(f"score {name}", (3,), (4,), stack, tenant="default"),
            "load": LoadCommand(f"load {name}", bad),
            "pin": PinCommand(f"pin {name}", (bad,)),
            "train": train_command(f"train {name}", spec, rows, stacks=(stack,), output=output),
            "init": train_command(f"init {name}", spec, rows, init=bad, output=output),
        }
        engine.submit(*asked.values(), UnloadCommand(f"unload {name}", bad.digest))
        engine.finish(*(f"{what} {name}" for what in (*asked, "unload")))
        for what in asked:
            failure = engine.failure(f"{what} {name}")
            assert failure is not None, (what, name)
            assert failure.code is Code.INVALID_ARGUMENT, (what, name, failure.message)
        assert engine.failure(f"unload {name}") is None
    engine.run(PinCommand("pin", (good,)), PinCommand("unpin", ()))
    assert engine.failure("pin") is None, "a rank that was refused is no adapter's"
    check_empty(engine)


def test_a_rank_that_the_files_do_not_have_starves_nobody(cases: Cases) -> None:
    """Eight times "rank 1" would be admitted, and then wait for ever for rows that are not there."""
    engine = cases.engine(adapter_rows=8)
    liar = replace(cases.versions["rs"], rank=1)
    both = stack_of((liar, 1.0), (replace(cases.versions["all"], rank=1), 1.0))
    engine.run(command("read", (3, 4), 2, both))
    failure = engine.failure("read")
    assert failure is not None
    assert failure.code is Code.INVALID_ARGUMENT
    assert "rank 7" in failure.message or "rank 4" in failure.message
    for id, name in (("rs", "rs"), ("all", "all")):
        engine.run(command(id, (3, 4), 2, cases.stack([(name, 1.0)])))
        assert engine.failure(id) is None
    engine.run(command("resident", (3, 4), 2, both))  # now the engine knows better
    failure = engine.failure("resident")
    assert failure is not None
    assert failure.reason in ("STACK_TOO_LARGE", "INVALID_ARGUMENT")
    check_empty(engine)


# -- jobs -------------------------------------------------------------------------------------------------------------

BAD_SPECS = {
    "spec.rank": {"rank": 2**40},
    "spec.alpha": {"alpha": NAN},
    "spec.dropout": {"dropout": 1.0},
    "spec.layers[0]": {"layers": (99,)},
    "spec.learning_rate": {"learning_rate": NAN},
    "spec.lr_scheduler": {"lr_scheduler": "eval"},
    "spec.method": {"method": "grpo"},
    "spec.epochs": {"epochs": INF},
    "spec.max_steps": {"max_steps": 0},
    "spec.batch_size": {"batch_size": 0},
    "spec.beta2": {"beta2": 1.0},
    "spec.max_grad_norm": {"max_grad_norm": -1.0},
    "spec.max_length": {"max_length": 2**31},
    "spec.seed": {"seed": -1},
}


def test_bad_jobs_are_refused(cases: Cases, tmp_path: Path) -> None:
    engine = cases.engine(folders=(str(tmp_path),))
    rows = (TrainRow((3, 4, 5), (True,) * 3),)
    good = train_command("", TrainSpec(rank=2, max_steps=1), rows, output=str(tmp_path / "out"))
    stack = cases.stack([("all", 1.0)])
    heavy = Stack((StackEntry(cases.versions["all"], 1e30),))
    link = tmp_path / "link"
    link.symlink_to("/etc")
    bad: dict[str, TrainCommand] = {
        "rows.path": replace(good, rows=RowsFile("../../etc/passwd", good.rows.sha256)),
        "rows.path ": replace(good, rows=RowsFile("/etc/passwd", good.rows.sha256)),
        "rows.path  ": replace(good, rows=RowsFile("a\0b", good.rows.sha256)),
        "rows.sha256": replace(good, rows=RowsFile(good.rows.path, "")),
        "output": replace(good, output="/etc/loramux"),
        "output ": replace(good, output=str(tmp_path / ".." / "out")),
        "output  ": replace(good, output=str(link / "loramux")),
        "output   ": replace(good, output="a\0b"),
        "checkpoint_dir": replace(good, checkpoint_dir="/"),
        "own_stacks": replace(good, own_stacks=2),
        "own_stacks ": replace(good, own_stacks=0),
        "row_stacks": replace(good, row_stacks=(0, -1)),
        "row_stacks ": replace(good, row_stacks=(1,)),
        "stacks[1][0].weight": replace(good, stacks=(stack, heavy)),
        "stacks[0]": replace(good, stacks=(Stack(stack.entries * 2),)),
        "checkpoint_every": replace(good, checkpoint_every=-1),
        "checkpoint_seconds": replace(good, checkpoint_seconds=NAN),
        "stored.step": replace(good, stored=Stored(step=-5)),
    }
    bad |= {field: replace(good, spec=replace(good.spec, **change)) for field, change in BAD_SPECS.items()}  # type: ignore[arg-type]
    for field, asked in bad.items():
        engine.run(replace(asked, job_id=f"job {field}"))
        failure = engine.failure(f"job {field}")
        assert failure is not None, field
        assert failure.code is Code.INVALID_ARGUMENT, (field, failure.message)
        assert field.strip() in [v.field for v in failure.violations], (field, failure.message)
    engine.train(replace(good, job_id="good"))
    assert (tmp_path / "out").is_dir()


def test_rows_that_no_pass_could_compute_fail_their_job(cases: Cases, engine: Engine, tmp_path: Path) -> None:
    """The file is what was written, and what was written is wrong."""
    bad = {
        "token id": (TrainRow((3, 384, 5), (True,) * 3),),
        "tokens": (TrainRow((3,) * 5000, (True,) * 5000),),
        "tokens ": (TrainRow((), ()),),
        "stack": (TrainRow((3, 4), (True, True), stack=7),),
    }
    for words, rows in bad.items():
        asked = train_command(f"rows {words}", TrainSpec(rank=2, max_steps=1), rows, output=str(tmp_path / "out"))
        engine.run(asked)
        failure = engine.failure(f"rows {words}")
        assert failure is not None, words
        assert (failure.code, words.strip() in failure.message) == (Code.INVALID_ARGUMENT, True), failure.message


def test_a_live_job_is_not_ended_by_a_second_one(cases: Cases, engine: Engine, tmp_path: Path) -> None:
    rows = (TrainRow((3, 4, 5), (True,) * 3),) * 4
    asked = train_command("job", TrainSpec(rank=2, max_steps=3), rows, output=str(tmp_path / "out"))
    engine.submit(asked, asked, replace(command("job", (3, 4), 2)))
    engine.finish("job")
    assert engine.failure("job") is None
    assert sum(output.done for output in engine.outputs["job"]) == 1


def test_what_cannot_be_read_is_answered_where_its_id_is_known(engine: Engine) -> None:
    engine.loop.submit(Unreadable("", "nonsense"))
    engine.loop.submit(Unreadable("lost", "Expected `int`, got `str` - at `$.prompt_ids[0]`"))
    engine.finish("lost")
    failure = engine.failure("lost")
    assert failure is not None
    assert failure.code is Code.INVALID_ARGUMENT
    assert "$.prompt_ids[0]" in failure.message


# -- whatever a generation can be asked with --------------------------------------------------------------------------

INTEGERS = st.one_of(
    st.integers(-3, 12),
    st.sampled_from([0, 1, 255, 256, 383, 384, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63, -(2**63), -1]),
)
FLOATS = st.one_of(
    st.floats(0, 2),
    st.sampled_from([0.0, -0.0, 1e-308, 1e-45, 1e-4, 1.0, 10.0, 1e30, 1e308, NAN, INF, -INF, -1.0]),
    st.floats(),
)
SAMPLING = st.builds(
    SamplingParams,
    max_tokens=INTEGERS,
    temperature=FLOATS,
    top_p=FLOATS,
    top_k=INTEGERS,
    min_p=FLOATS,
    repetition_penalty=FLOATS,
    presence_penalty=FLOATS,
    frequency_penalty=FLOATS,
    logit_bias=st.lists(st.tuples(INTEGERS, FLOATS), max_size=3).map(tuple),
    seed=st.none() | INTEGERS,
    logprobs=st.none() | INTEGERS,
    stop_token_ids=st.lists(INTEGERS, max_size=3).map(tuple),
    ignore_eos=st.booleans(),
    min_tokens=INTEGERS,
)
GOOD_SAMPLING = st.builds(
    SamplingParams,
    max_tokens=st.integers(1, 4),
    temperature=st.sampled_from([0.0, 1e-4, 0.7, 10.0]),
    top_p=st.sampled_from([1e-320, 0.1, 0.9, 1.0]),
    top_k=st.sampled_from([0, 1, 50, 2**31 - 1]),
    min_p=st.sampled_from([0.0, 0.05, 1.0]),
    repetition_penalty=st.sampled_from([1e-320, 1e-30, 0.5, 1.0, 10.0]),
    presence_penalty=st.sampled_from([-2.0, 0.0, 2.0]),
    frequency_penalty=st.sampled_from([-2.0, 0.0, 2.0]),
    logit_bias=st.sampled_from([(), ((3, 100.0), (4, -100.0))]),
    seed=st.sampled_from([None, 0, 2**31, 2**32 - 1, 2**63 - 1, -1, -(2**63)]),
    logprobs=st.sampled_from([None, 0, 1, 384]),
    stop_token_ids=st.sampled_from([(), (3,), (0, 383)]),
    ignore_eos=st.booleans(),
    min_tokens=st.sampled_from([0, 1]),
)
IDS = st.lists(st.integers(0, 383) | INTEGERS, max_size=6).map(tuple)


@given(prompt=IDS, sampling=SAMPLING | GOOD_SAMPLING, seconds=st.none() | FLOATS, tenant=st.text(max_size=4))
@examples(150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_generation_is_answered_or_refused(
    engine: Engine, prompt: tuple[int, ...], sampling: SamplingParams, seconds: float | None, tenant: str
) -> None:
    id = f"any-{next(NUMBERS)}"
    engine.run(GenerateCommand(id, prompt, sampling=sampling, tenant=tenant, seconds_left=seconds))
    failure = engine.failure(id)
    assert failure is None or failure.code in (
        Code.INVALID_ARGUMENT,
        Code.DEADLINE_EXCEEDED,
        Code.RESOURCE_EXHAUSTED,
    ), failure
    assert all(0 <= token < 384 for token in engine.tokens(id))
    check_empty(engine)


@given(sampling=GOOD_SAMPLING)
@examples(150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.slow
def test_every_pair_of_sampling_options_is_answered(engine: Engine, sampling: SamplingParams) -> None:
    """A tiny penalty makes an infinite logit, whose difference from itself is no number."""
    id = f"pair-{next(NUMBERS)}"
    engine.run(GenerateCommand(id, (3, 4, 5, 3), sampling=sampling, tenant="default"))
    assert engine.failure(id) is None
    assert engine.tokens(id)


def test_requests_beside_all_that_were_served(cases: Cases, engine: Engine) -> None:
    case = Case(cases.prompts[0], cases.stack([("rs", 1.0)]), 4)
    engine.run(command("last", case.prompt, 4, case.stack))
    check_tokens(engine.tokens("last"), cases.alone(case))
