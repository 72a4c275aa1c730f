"""Named settings: what they give, what stays the caller's, and that a style is not trained over nothing by mistake."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import pytest

from loramux._wire.messages.train_requests import layers
from loramux_server.core.backend import EngineInfo
from loramux_server.core.errors import Code, Error
from loramux_server.core.jobs import JobRequest, TrainSpec
from loramux_server.core.types import StackItem
from loramux_server.services.jobs.checking.recipes import with_recipe
from loramux_server.store.records import AdapterMeta
from loramux_server.store.store import Store
from loramux_server.text import TextTokenizer
from tools.make_adapters import FACTS

from .adapter_files import write_adapter
from .test_training_jobs import ROWS, Server

NOTHING: frozenset[str] = frozenset()


@pytest.fixture
def server(store: Store, text: TextTokenizer, info: EngineInfo) -> Server:
    return Server.over(store, text, info)


@pytest.fixture
def donor(store: Store, info: EngineInfo, tmp_path: Path) -> str:
    folder = write_adapter(tmp_path / "pine", info, b=0.1)
    store.adapters.publish("pine", "default", folder, AdapterMeta(rank=2, alpha=4.0))
    return "pine"


def default_base(info: EngineInfo) -> EngineInfo:
    """The shape of the default base: 30 layers, a tenth of a billion parameters in linears."""
    linears = {f"model.layers.{i}.mlp.up_proj": (1885, 1885) for i in range(30)}
    return replace(info, num_layers=30, linear_modules=linears)


def spec_of(recipe: str, info: EngineInfo, given: frozenset[str] = NOTHING, **spec: object) -> TrainSpec:
    request = JobRequest("acme", "ds", "default", spec=TrainSpec(**spec), recipe=recipe, given=given)  # type: ignore[arg-type]
    return with_recipe(request, info).spec


def test_the_recipes_on_the_default_base(info: EngineInfo) -> None:
    """Facts are the recipe that the benchmarks spell out; everything else is the defaults'."""
    base = default_base(info)
    facts = spec_of("facts", base)
    expected = {**FACTS, "layers": tuple(layers(FACTS["layers"]))}
    assert {name: getattr(facts, name) for name in FACTS} == expected
    style = spec_of("style", base)
    assert (style.rank, style.alpha, style.epochs, style.learning_rate) == (8, 16.0, 2.0, 2e-3)
    assert style.layers == facts.layers
    assert (facts.replay, style.replay) == ("default", "")
    changed = {"rank", "alpha", "layers", "learning_rate", "epochs", "replay"}
    for field in fields(TrainSpec):
        if field.name not in changed:
            assert getattr(style, field.name) == getattr(facts, field.name) == getattr(TrainSpec(), field.name)


def test_a_large_base_learns_more_slowly(info: EngineInfo) -> None:
    large = replace(info, num_layers=33, linear_modules={"model.layers.0.mlp.up_proj": (80_000, 81_250)})
    assert spec_of("facts", large).learning_rate == pytest.approx(2e-4)
    assert spec_of("style", large).learning_rate == pytest.approx(1.3e-4)
    assert spec_of("facts", large).layers == tuple(range(16, 33))


def test_what_is_given_stays(info: EngineInfo) -> None:
    given = frozenset({"rank", "learning_rate", "layers"})
    spec = spec_of("facts", info, given, rank=4, learning_rate=1e-4, layers=(0,))
    assert (spec.rank, spec.learning_rate, spec.layers) == (4, 1e-4, (0,))
    assert (spec.alpha, spec.epochs) == (32.0, 4.0)
    assert spec_of("facts", info, frozenset({"replay"}), replay="ds-1").replay == "ds-1"
    assert spec_of("facts", info, frozenset({"replay_rows"}), replay_rows=8).replay == "default"
    assert spec_of("facts", info, frozenset({"replay_rows"}), replay_rows=0).replay == ""


async def test_an_unknown_recipe_tells_the_known_ones(server: Server) -> None:
    with pytest.raises(Error) as caught:
        await server.job(recipe="fact", given=NOTHING)
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert [v.field for v in caught.value.violations] == ["recipe"]
    assert "facts, style" in caught.value.message


async def test_the_job_runs_with_the_recipe(server: Server) -> None:
    job = await server.job(recipe="facts", given=NOTHING, idempotency_key="k")
    assert (job.request.spec.rank, job.request.spec.layers, job.request.spec.replay_rows) == (16, (2, 3), 32)
    assert (await server.job(recipe="facts", given=NOTHING, idempotency_key="k")).id == job.id


async def test_a_style_wants_donors(server: Server, donor: str) -> None:
    """By the job or by its rows; a stack that is empty on purpose will do."""
    with pytest.raises(Error) as caught:
        await server.job(recipe="style", given=NOTHING)
    assert [v.field for v in caught.value.violations] == ["on_top_of"]
    assert "[[]]" in caught.value.message
    turns = ((StackItem(donor, 1.3),), ())
    assert (await server.job(recipe="style", given=NOTHING, on_top_of=turns)).request.spec.rank == 8
    assert (await server.job(recipe="style", given=NOTHING, on_top_of=((),))).request.on_top_of == ((),)
    rows = [{**row, "on_top_of": {donor: 1.3}} for row in ROWS]
    dataset = await server.dataset(rows)  # type: ignore[arg-type]
    assert (await server.job(recipe="style", given=NOTHING, dataset_id=dataset)).request.on_top_of == ()


async def test_a_version_to_start_from_keeps_its_shape(server: Server, donor: str) -> None:
    job = await server.job(recipe="facts", given=NOTHING, init_from=donor)
    assert (job.request.spec.rank, job.request.spec.alpha, job.request.spec.epochs) == (2, 4.0, 4.0)
