"""How fronts find, deploy and lose the application of a cluster, with a Ray that only remembers."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest

from loramux_server.core.settings import EngineSettings
from loramux_server.replicas.cluster import Cluster, ClusterSettings

NAME = "loramux-db-1"


class Serve(MagicMock):
    """Ray Serve whose application has one state after the other, the last one for good; None: there is none."""

    states: list[str | None]
    deployed = 0

    def status(self) -> Any:
        state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        found = SimpleNamespace(status=state, message="", deployments={})
        return SimpleNamespace(applications={} if state is None else {NAME: found})

    def run_many(self, *_: Any, **__: Any) -> list[str]:
        self.deployed += 1
        return [f"deployed {self.deployed}"]

    def get_app_handle(self, name: str) -> str:
        return f"joined {name}"


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Serve:
    serve = Serve()
    ray = MagicMock(serve=serve)
    ray.cluster_resources.return_value = {}
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setattr("loramux_server.replicas.cluster.POLL_SECONDS", 0.0)
    return serve


@pytest.fixture
def cluster() -> Cluster:
    return Cluster(EngineSettings(), ClusterSettings(NAME, "server", address="auto"))


@pytest.mark.parametrize(
    ("states", "handle"),
    [
        ([None, "DEPLOYING", "RUNNING"], "deployed 1"),
        (["DEPLOYING", "DEPLOYING", "RUNNING"], f"joined {NAME}"),
        (["RUNNING", "DELETING", "DELETING", "RUNNING"], "deployed 1"),
        (["DEPLOYING", "DEPLOYING", None, None, "RUNNING"], "deployed 1"),
    ],
    ids=["alone", "joins", "removed while it joins", "removed while it waits"],
)
def test_a_front_ends_up_with_replicas(serve: Serve, cluster: Cluster, states: list[str | None], handle: str) -> None:
    serve.states = states
    assert cluster.deploy(lambda step: None) == handle


def test_a_front_notices_that_its_application_is_gone(serve: Serve, cluster: Cluster) -> None:
    for state, gone in (("RUNNING", False), ("UNHEALTHY", False), ("DELETING", True), (None, True)):
        serve.states = [state]
        assert cluster.application_is_gone() is gone
