"""What a front knows of its replicas, and what it makes of their statistics."""

from __future__ import annotations

from loramux_server.core.backend import EmbedCommand, EngineStats, GenerateCommand, GpuStats, ReplicaState, ScoreCommand
from loramux_server.core.types import AdapterVersion, SamplingParams, Stack, StackEntry
from loramux_server.engine.transport.protocol import LoadCommand, StatsCommand
from loramux_server.replicas.commands import work_of
from loramux_server.replicas.routing.affinity import Work
from loramux_server.replicas.routing.fleet import Fleet, Report, close_fleet, fleet_of, open_fleet
from loramux_server.replicas.totals import total

ACME = AdapterVersion("acme", 1, "d" * 64, 8)


def test_replicas_come_drain_and_go() -> None:
    changes: list[frozenset[str]] = []
    fleet = Fleet(lambda: changes.append(fleet.accepting))
    fleet.update({"a": Report(node="n1"), "b": Report(state="restarting")})
    assert fleet.accepting == {"a"}
    fleet.update({"a": Report(), "b": Report(queued_tokens=7)})
    fleet.drain("a")
    assert fleet.rank(Work("1"), ["a", "b"]) == ["b"]
    assert [(replica.id, replica.state) for replica in fleet.replicas()] == [
        ("a", ReplicaState.DRAINING),
        ("b", ReplicaState.READY),
    ]
    # Its own reports may not say so yet.
    fleet.update({"a": Report(), "b": Report()})
    assert fleet.accepting == {"b"}
    fleet.lost("b")
    assert fleet.rank(Work("2"), ["a", "b"]) == [], "although Ray still names it"
    fleet.update({"c": Report()})
    assert fleet.accepting == {"c"}
    fleet.update({"c": Report(), "a": Report()})
    assert fleet.accepting == {"c", "a"}, "a replica of that id came anew"
    assert changes == [{"a"}, {"a", "b"}, {"b"}, {"b"}, frozenset(), {"c"}, {"c", "a"}]


def test_a_replica_that_has_not_reported_takes_work() -> None:
    fleet = Fleet(lambda: None)
    assert fleet.rank(Work("1"), ["new"]) == ["new"]
    fleet.lost("new")
    fleet.update({"new": Report()})
    assert fleet.rank(Work("1"), ["new"]) == ["new"], "it was not lost after all"


def test_a_fleet_is_found_by_its_application() -> None:
    fleet = open_fleet("app", lambda: None)
    assert fleet_of("app") is fleet
    close_fleet("app")
    assert fleet_of("app") is None


def test_what_a_command_is_worth() -> None:
    stack = Stack((StackEntry(ACME),))
    generate = GenerateCommand("1", (1, 2, 3), stack, SamplingParams(max_tokens=10), tenant="t")
    assert work_of(generate) == Work("1", frozenset({ACME.digest}), 13)
    assert work_of(ScoreCommand("2", (1,), (2, 3), stack, tenant="t")) == Work("2", frozenset({ACME.digest}), 3)
    assert work_of(EmbedCommand("3", (1, 2), tenant="t")) == Work("3", tokens=2)
    assert work_of(LoadCommand("4", ACME)) == Work("4", frozenset({ACME.digest}))
    assert work_of(StatsCommand("5"), "a") == Work("5", replica="a")


def test_statistics_of_all_replicas() -> None:
    gpu = GpuStats(allocated=1, reserved=2, utilization=0.5)
    one = EngineStats(
        running=1,
        memory={"base": 10, "free": 1},
        gpu=gpu,
        resident={"device": ("x", "y"), "host": ()},
        adapter_loads={"host": (1, 0.5)},
        steps={"decode": (3, 1.0)},
        training_jobs=("j1",),
        queue_waits=(1, 0, 2),
        cuda_graphs=2,
    )
    other = EngineStats(
        running=2,
        memory={"base": 10},
        gpu=GpuStats(allocated=5, reserved=6, other_processes=7, utilization=1.0),
        resident={"device": ("y", "z")},
        adapter_loads={"host": (2, 0.25), "device": (1, 1.0)},
        steps={"decode": (1, 0.5)},
        queue_waits=(1, 1, 1),
    )
    both = total([one, other])
    assert both.running == 3
    assert both.memory == {"base": 20, "free": 1}
    assert both.gpu == GpuStats(allocated=6, reserved=8, other_processes=7, utilization=0.75)
    assert both.resident == {"device": ("x", "y", "z"), "host": ()}
    assert both.adapter_loads == {"host": (3, 0.75), "device": (1, 1.0)}
    assert both.steps == {"decode": (4, 1.5)}
    assert both.training_jobs == ("j1",)
    assert both.queue_waits == (2, 1, 3)
    assert both.cuda_graphs == 2
    assert total([one]) == one
    assert total([EngineStats(), EngineStats()]) == EngineStats()
