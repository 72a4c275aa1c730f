"""Adapters come and go while requests run, and the prefix cache goes by what they hold, never by their names."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loramux_server.core.backend import TokenEvent
from loramux_server.core.errors import Code
from loramux_server.core.jobs import TrainSpec
from loramux_server.core.types import Stack
from loramux_server.engine import build
from loramux_server.engine.residency import cache
from loramux_server.engine.residency.load_quota import LoadQuota
from loramux_server.engine.transport.protocol import AbortCommand, LoadCommand, PinCommand, UnloadCommand
from tests.engine import BLOBS, Engine, check_tokens, command, rows, stack_of, version_of
from tests.examples import examples
from tests.rows import train_command
from tests.tensor.engine_cases import STACKS, Case, Cases, check_empty, make_cases


@pytest.fixture(scope="module")
def cases(tiny_base, make_adapter, tmp_path_factory) -> Iterator[Cases]:  # type: ignore[no-untyped-def]
    made = make_cases(tiny_base("llama"), tmp_path_factory.mktemp("adapters"), make_adapter)
    yield made
    made.close()


@pytest.fixture(scope="module")
def roomy(cases: Cases) -> Engine:
    return cases.engine()


def cached(engine: Engine, id: str) -> int:
    payload = engine.outputs[id][0].payload
    assert isinstance(payload, TokenEvent)
    return payload.cached_tokens


# -- the prefix cache -------------------------------------------------------------------------------------------------


def test_a_prefix_is_shared_only_by_equal_content(cases: Cases, roomy: Engine, make_adapter) -> None:  # type: ignore[no-untyped-def]
    """Tenant, weight, order and the adapter's bytes under the same name and version: any other one never hits."""
    v = cases.versions
    other_bytes = replace(
        version_of(make_adapter(cases.root / "again", cases.base, rank=4, alpha=8, seed=99), 4), name="all"
    )
    assert (other_bytes.ref, other_bytes.digest != v["all"].digest) == (v["all"].ref, True)
    both = stack_of((v["all"], 1.0), (v["upper"], 1.0))
    first = stack_of((v["all"], 1.0))
    strangers = {
        "the base": (Stack(), "a"),
        "weight": (stack_of((v["all"], 1.5)), "a"),
        "sign": (stack_of((v["all"], -1.0)), "a"),
        "bytes": (stack_of((other_bytes, 1.0)), "a"),
        "more": (both, "a"),
        "order": (Stack(both.entries[::-1]), "a"),
        "tenant": (first, "b"),
        "tenant of the base": (Stack(), "b"),
        "tenant named like a digest": (Stack(), v["all"].digest),
    }
    prompt = cases.prompts[0]
    roomy.scheduler.pages.clear_cached()
    roomy.run(replace(command("first", prompt, 4, first), tenant="a"))
    for what, (stack, tenant) in strangers.items():
        roomy.run(replace(command(what, prompt, 4, stack), tenant=tenant))
        assert cached(roomy, what) == 0, what
        if stack != stack_of((other_bytes, 1.0)):
            check_tokens(roomy.tokens(what), cases.alone(Case(prompt, stack, 4)))
    renamed = stack_of((replace(v["all"], name="alias", version=7), 1.0))
    for what, stack, tenant in (("again", first, "a"), ("alias", renamed, "a")):
        roomy.run(replace(command(what, prompt, 4, stack), tenant=tenant))
        assert cached(roomy, what) >= 16, what
        assert roomy.tokens(what) == roomy.tokens("first")
    assert roomy.tokens("bytes") != roomy.tokens("first")


def test_generated_tokens_are_a_prefix_too(cases: Cases, roomy: Engine) -> None:
    """The next turn of a talk begins with the last answer."""
    prompt = cases.prompts[1][:18]
    roomy.scheduler.pages.clear_cached()
    roomy.run(command("turn1", prompt, 20))
    longer = [*prompt, *roomy.tokens("turn1"), 5, 6]
    roomy.run(command("turn2", longer, 4))
    assert cached(roomy, "turn2") == 32
    roomy.scheduler.pages.clear_cached()
    roomy.run(command("fresh", longer, 4))
    assert cached(roomy, "fresh") == 0
    assert roomy.tokens("fresh") == roomy.tokens("turn2")


def test_an_abort_ends_the_request_of_that_id_alone(cases: Cases, roomy: Engine) -> None:
    """A beginning of an id, or a longer one, is another request."""
    others = ("ended-1", "ende", "Ended")
    roomy.submit(*(command(id, cases.prompts[0], 8) for id in ("ended", *others)))
    roomy.loop.turn()
    roomy.submit(AbortCommand("ended"))
    roomy.finish(*others)
    assert roomy.scheduler.sequences == []
    assert not any(output.done for output in roomy.outputs["ended"])
    assert len({tuple(roomy.tokens(id)) for id in others}) == 1


# -- coming and going -------------------------------------------------------------------------------------------------


@given(seed=st.integers(0, 2**32 - 1))
@examples(4)
def test_evicted_adapters_come_back_the_same(cases: Cases, seed: int) -> None:
    """Room for 9 rank rows and next to nothing on the host: adapters are read again and again."""
    random = Random(seed)
    engine = cases.engine(adapter_rows=9, adapter_host_memory=1)
    stacks = [s for s in STACKS if cases.stack(s).rank <= 9]
    for _ in range(3):
        cases.try_in(engine, cases.draw(random, 12, stacks), stagger=lambda: random.random() < 0.3)
    drawn = [
        Case(cases.prompts[i % 6], cases.stack([(name, 1.0)])) for i, name in enumerate(("rs", "all", "rs", "all"))
    ]
    cases.try_in(engine, drawn)
    assert engine.runner.bank.evictions > 0


def test_a_stack_that_can_never_fit_is_refused_at_once(cases: Cases) -> None:
    engine = cases.engine(adapter_rows=9)
    engine.run(command("wide", [3, 4], 2, cases.stack([("all", 1.0), ("rs", 1.0)])))
    failure = engine.failure("wide")
    assert failure is not None
    assert (failure.code, failure.reason) == (Code.RESOURCE_EXHAUSTED.value, "STACK_TOO_LARGE")
    cases.try_in(engine, [Case(cases.prompts[0], cases.stack([("all", 1.0), ("upper", 1.0), ("attention", 1.0)]))])


def test_a_stack_fits_whatever_lay_where_before(cases: Cases) -> None:
    """Adapters that keep their rows in the middle of the bank don't shut out one that needs a long run."""
    engine = cases.engine(adapter_rows=11)
    for name in ("all", "upper", "attention"):  # rows 0-4, 4-6, 6-9
        cases.try_in(engine, [Case(cases.prompts[0], cases.stack([(name, 1.0)]), 2)])
    engine.loop.submit(UnloadCommand("u", cases.versions["all"].digest))
    cases.try_in(engine, [Case(cases.prompts[0], cases.stack([("upper", 1.0), ("rs", 1.0)]))])


def test_unloading_waits_for_the_last_user(cases: Cases, roomy: Engine) -> None:
    case = Case(cases.prompts[2], cases.stack([("all", 1.0)]), 10)
    digest = cases.versions["all"].digest
    roomy.submit(command("user", case.prompt, 10, case.stack))
    while len(roomy.tokens("user")) < 3:
        roomy.loop.turn()
    roomy.run(UnloadCommand("unload", digest))
    assert digest in roomy.runner.bank.digests
    roomy.finish("user")
    assert digest not in roomy.runner.bank.digests
    assert digest not in roomy.stats().resident["host"]
    check_tokens(roomy.tokens("user"), cases.alone(case))
    cases.try_in(roomy, [case])  # read again when asked for again
    assert digest in roomy.runner.bank.digests


def test_loading_answers_when_the_adapter_is_there(cases: Cases) -> None:
    engine = cases.engine()
    version = cases.versions["all"]
    engine.run(LoadCommand("l1", version), LoadCommand("l2", version))
    assert engine.failure("l1") is engine.failure("l2") is None
    assert version.digest in engine.stats().resident["device"]
    engine.run(LoadCommand("l3", version))
    engine.run(UnloadCommand("u1", version.digest), UnloadCommand("u2", "unknown"))
    assert engine.stats().resident == {"device": (), "host": ()}


def test_files_that_are_gone_fail_those_who_asked_and_nobody_else(cases: Cases, roomy: Engine) -> None:
    folder = cases.root / "gone"
    shutil.copytree(cases.folders["upper"], folder)
    (folder / "README.md").write_text("# content of its own")
    gone = version_of(folder, 2)
    shutil.rmtree(BLOBS.local_path(gone.digest))
    mate = Case(cases.prompts[3], cases.stack([("all", 1.0)]))
    roomy.submit(command("g1", mate.prompt, 5, stack_of((gone, 1.0))), command("mate", mate.prompt, 5, mate.stack))
    theirs = replace(gone, name="theirs", version=7)  # of a tenant that has the same content
    roomy.submit(command("g2", mate.prompt, 5, stack_of((cases.versions["rs"], 1.0), (theirs, 1.0))))
    roomy.submit(LoadCommand("load", gone))
    roomy.finish("g1", "g2", "mate", "load")
    for id, name in (("g1", "adapter gone@1: "), ("g2", "adapter theirs@7: "), ("load", "")):
        failure = roomy.failure(id)
        assert failure is not None
        assert failure.code == Code.DATA_LOSS.value
        assert failure.message.startswith(name)
        assert ("gone@1" in failure.message) is (id == "g1")
    check_tokens(roomy.tokens("mate"), cases.alone(mate)[:5])
    check_empty(roomy)


@pytest.mark.parametrize("digest", ["../../etc", "/etc", "", "F" * 64])
def test_what_is_no_digest_is_refused_and_opens_no_file(cases: Cases, roomy: Engine, digest: str) -> None:
    """The engine takes no path from a command, whoever sent it."""
    bad = replace(cases.versions["all"], digest=digest)
    roomy.run(command("generate", cases.prompts[0], 3, stack_of((bad, 1.0))), LoadCommand("load", bad))
    roomy.run(train_command("train", TrainSpec(max_steps=1), rows(2), stacks=(stack_of((bad, 1.0)),)))
    for id in ("generate", "load", "train"):
        failure = roomy.failure(id)
        assert failure is not None
        assert failure.code == Code.INVALID_ARGUMENT.value
        assert "digest" in failure.message
        roomy.outputs.pop(id)
    check_empty(roomy)


def test_a_defect_while_reading_reaches_whoever_waits(
    cases: Cases, roomy: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def defect(*_: object, **__: object) -> None:
        raise ValueError("a defect")

    monkeypatch.setattr(cache, "read_content", defect)
    unread = replace(cases.versions["upper"], digest="e" * 64)
    roomy.run(command("unread", cases.prompts[0], 3, stack_of((unread, 1.0))))
    failure = roomy.failure("unread")
    assert failure is not None
    assert failure.code == Code.INTERNAL.value
    monkeypatch.undo()
    check_empty(roomy)


def test_an_adapter_that_says_less_rank_than_it_has_is_refused_each_time(cases: Cases) -> None:
    """The engine trusts the files, not the message, and stays up."""
    engine = cases.engine(adapter_rows=5)
    liar = replace(cases.versions["rs"], rank=1)
    for id in ("first", "second"):
        engine.run(command(id, cases.prompts[0], 3, stack_of((liar, 1.0))))
        failure = engine.failure(id)
        assert failure is not None
        assert failure.code == Code.INVALID_ARGUMENT.value
    cases.try_in(engine, [Case(cases.prompts[0], cases.stack([("all", 1.0)]))])


# -- pinned by an operator ---------------------------------------------------------------------------------------------


def test_what_is_pinned_is_never_evicted(cases: Cases) -> None:
    engine = cases.engine(adapter_rows=14)  # all 4, rs 7, upper 2, attention 3
    v = cases.versions
    engine.run(LoadCommand("load", v["all"]), PinCommand("pin", (v["all"],)))
    assert engine.failure("pin") is None
    for entries in ([("rs", 1.0)], [("upper", 1.0), ("attention", 1.0)], [("rs", 1.0)]):
        cases.try_in(engine, [Case(cases.prompts[0], cases.stack(entries), 3)])
        assert v["all"].digest in engine.runner.bank.digests
    assert engine.runner.bank.evictions > 0
    engine.run(PinCommand("none", ()))
    cases.try_in(engine, [Case(cases.prompts[0], cases.stack([("rs", 1.0), ("attention", 1.0), ("upper", 1.0)]), 3)])
    assert v["all"].digest not in engine.runner.bank.digests


def test_the_largest_adapter_must_fit_beside_what_is_pinned(cases: Cases) -> None:
    engine = cases.engine(adapter_rows=13)
    v = cases.versions
    engine.run(LoadCommand("all", v["all"]), LoadCommand("rs", v["rs"]), PinCommand("one", (v["all"],)))
    engine.run(PinCommand("two", (v["all"], v["upper"])))  # 4 + 2, and 7 beside: just fits
    assert engine.failure("two") is None
    engine.run(PinCommand("three", (v["all"], v["attention"])))
    failure = engine.failure("three")
    assert failure is not None
    assert (failure.code, failure.reason) == (Code.RESOURCE_EXHAUSTED.value, "TOO_MANY_PINNED")
    assert engine.runner.bank.pinned == {v["all"].digest, v["upper"].digest}  # as before
    # What is pinned costs a stack nothing; what cannot fit beside it is refused at once, not left waiting.
    cases.try_in(engine, [Case(cases.prompts[0], cases.stack([("rs", 1.0), ("all", 1.0), ("upper", 1.0)]), 3)])
    engine.run(command("big", cases.prompts[0], 3, cases.stack([("rs", 1.0), ("attention", 1.0)])))
    failure = engine.failure("big")
    assert failure is not None
    assert failure.reason == "STACK_TOO_LARGE"


def test_a_pin_ends_the_waiting_of_what_it_leaves_no_room_for(cases: Cases) -> None:
    engine = cases.engine(adapter_rows=11)
    v = cases.versions
    engine.submit(command("waits", cases.prompts[0], 3, cases.stack([("rs", 1.0), ("all", 1.0)])))
    engine.submit(PinCommand("pin", (v["upper"],)))
    engine.finish("waits", "pin")
    failure = engine.failure("waits")
    assert failure is not None
    assert failure.reason == "STACK_TOO_LARGE"
    check_empty(engine)


def test_stats_of_loads_hits_and_bytes(cases: Cases) -> None:
    engine = cases.engine(adapter_rows=7)
    for name in ("all", "all", "rs", "all"):  # disk; device; disk, which evicts all; host
        cases.try_in(engine, [Case(cases.prompts[0], cases.stack([(name, 1.0)]), 2)])
    found = engine.stats()
    assert found.adapter_hits == {"device": 1, "host": 1, "disk": 2}
    assert [found.adapter_loads[tier][0] for tier in ("host", "device")] == [2, 3]
    assert all(seconds > 0 for _, seconds in found.adapter_loads.values())
    assert found.adapter_evictions == 2
    assert found.resident_bytes["device"] == engine.runner.bank.used_bytes > 0
    assert found.resident_bytes["host"] > 0
    for name in ("all", "rs"):
        engine.run(UnloadCommand(f"u-{name}", cases.versions[name].digest))
    assert engine.stats().resident_bytes["host"] == 0


def test_a_tenant_that_loads_too_fast_waits_and_nobody_else(cases: Cases, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 0.0
    quota = LoadQuota(4.0, lambda: clock)
    monkeypatch.setattr(build, "LoadQuota", lambda rate: quota)
    engine = cases.engine()  # a burst of 8
    while quota.take("greedy"):
        pass
    case = Case(cases.prompts[0], cases.stack([("all", 1.0)]), 3)
    cold = command("cold", case.prompt, 3, case.stack)
    engine.submit(replace(cold, tenant="greedy"), command("mate", case.prompt, 3))
    engine.finish("mate")
    other = cases.stack([("rs", 1.0)])
    engine.submit(replace(command("other", case.prompt, 3, other), tenant="modest"))
    engine.finish("other")
    assert engine.outputs["cold"] == []
    assert engine.loop.next_moment() == pytest.approx(0.25)
    clock = 0.26
    engine.finish("cold")  # wakes by itself: no command comes any more
    check_tokens(engine.tokens("cold"), cases.alone(case))
    # What is in memory costs nothing, however little is left.
    engine.submit(replace(command("again", case.prompt, 3, case.stack), tenant="greedy"))
    engine.finish("again")
    check_empty(engine)


def test_what_an_operator_loads_is_no_tenants_quota(cases: Cases, monkeypatch: pytest.MonkeyPatch) -> None:
    quota = LoadQuota(1.0, lambda: 0.0)
    monkeypatch.setattr(build, "LoadQuota", lambda rate: quota)
    engine = cases.engine()
    while quota.take("greedy"):
        pass
    case = Case(cases.prompts[0], cases.stack([("all", 1.0)]), 3)
    engine.submit(replace(command("cold", case.prompt, 3, case.stack), tenant="greedy"))
    engine.submit(LoadCommand("load", cases.versions["all"]))
    engine.finish("load", "cold")
    check_empty(engine)
