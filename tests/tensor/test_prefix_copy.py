"""Pages larger than a block of the prefix cache: what is known of a page is copied, and nobody notices."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from random import Random

import pytest
import torch

from loramux_server.engine.scheduling.plan import StepPlan
from loramux_server.model import resident
from loramux_server.model.kv import KVPool, KVShape
from tests.engine import Engine, command, prompts
from tests.tensor.engine_cases import STACKS, Case, Cases, make_cases
from tests.tensor.test_engine_batch import cached_tokens

PAGE = 64


@pytest.fixture(scope="module")
def cases(tiny_base, make_adapter, tmp_path_factory) -> Iterator[Cases]:  # type: ignore[no-untyped-def]
    made = make_cases(tiny_base("llama"), tmp_path_factory.mktemp("prefixes"), make_adapter)
    yield made
    made.close()


@pytest.fixture
def engine(cases: Cases, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """One that computes as the reference does, in larger pages."""
    monkeypatch.setattr(resident, "KVShape", partial(KVShape, page_size=PAGE))
    made = cases.engine(max_batch_tokens=48)
    assert made.runner.kv.shape.page_size == PAGE
    return made


def watch_copies(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, int]]:
    """(source, target, tokens) of all copies from now on; pages that are read must stay as they are."""
    made: list[tuple[int, int, int]] = []
    kv, run = engine.runner.kv, engine.runner.run

    def watched(plan: StepPlan, *chosen):  # type: ignore[no-untyped-def]
        copies = [w.copy for w in plan.work if w.copy is not None]
        made.extend((c.source, c.target, c.tokens) for c in copies)
        before = [kv.keys[:, c.source, : c.tokens].clone() for c in copies]
        output = run(plan, *chosen)
        for copy, keys in zip(copies, before, strict=True):
            assert torch.equal(kv.keys[:, copy.source, : copy.tokens], keys)
            assert torch.equal(kv.keys[:, copy.target, : copy.tokens], keys)
        return output

    monkeypatch.setattr(engine.runner, "run", watched)
    return made


def test_every_length_of_a_known_prefix(cases: Cases, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hits at every multiple of 16, inside pages and at their ends; the tokens are those of an empty cache."""
    copies = watch_copies(engine, monkeypatch)
    first, second = prompts(2, lengths=(150, 151), seed=3)
    cases.try_in(engine, [Case(tuple(first), cases.stack([]))])
    for shared in (15, 16, 40, 63, 64, 65, 79, 80, 127, 128, 144):
        engine.scheduler.pages.clear_cached()
        cases.try_in(engine, [Case(tuple(first), cases.stack([]), 1)])
        before = len(copies)
        cases.try_in(engine, [Case(tuple(first[:shared] + second[shared:]), cases.stack([]))])
        known = shared // 16 * 16
        assert cached_tokens(engine, next(reversed(engine.outputs))) == known
        assert [tokens for *_, tokens in copies[before:]] == ([known % PAGE] if known % PAGE else [])


def test_a_page_is_copied_while_its_owner_writes_to_it(
    cases: Cases, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first request has answered nothing yet when others go on from its head, in one step and in later ones."""
    copies = watch_copies(engine, monkeypatch)
    head, *tails = prompts(4, lengths=(40, 41), seed=5)
    wanted = [Case(tuple(head + tail[:9]), cases.stack(STACKS[1]), 12) for tail in tails]
    engine.submit(command("first", wanted[0].prompt, 12, wanted[0].stack))
    engine.loop.turn()
    cases.try_in(engine, wanted, stagger=lambda: len(copies) == 1)
    engine.finish("first")
    assert engine.tokens("first") == [token for token, _ in cases.alone(wanted[0])]
    assert len(copies) >= 3
    assert len({source for source, *_ in copies}) < len(copies)
    assert len({target for _, target, _ in copies}) == len(copies)


@pytest.mark.parametrize("pages", [6, 40])
def test_stacks_and_prefixes_in_a_mixed_load(pages: int, cases: Cases, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts that begin alike under all kinds of stacks; with few pages, sources are few and requests wait."""
    monkeypatch.setattr(resident, "KVShape", partial(KVShape, page_size=PAGE))
    engine = cases.engine(max_batch_tokens=48, kv_pages=pages * PAGE // 16)
    copies = watch_copies(engine, monkeypatch)
    draw = Random(7)
    for _ in range(6):
        cases.try_in(engine, cases.draw(draw, 9, STACKS[:4]), stagger=lambda: draw.random() < 0.5)
    assert copies
    assert engine.scheduler.pages.hit_tokens % 16 == 0


def test_what_is_not_copied_is_zero() -> None:
    """What stood behind the head, in the source or in the target, may be NaN, which passes through masks."""
    pool = KVPool(KVShape(2, 1, 4, page_size=8), 3, torch.device("cpu"), torch.float32)
    for pages in (pool.keys, pool.values):
        pages.fill_(torch.nan)
        pages[:, 0, :5] = torch.randn(2, 5, 1, 4)
    pool.copy(0, 2, 5)
    for pages in (pool.keys, pool.values):
        assert torch.equal(pages[:, 2, :5], pages[:, 0, :5])
        assert not pages[:, 2, 5:].any()
        assert pages[:, 1].isnan().all()
