"""``loramux replicas``, and the calls behind it."""

from __future__ import annotations

import json

import grpc

from loramux import Client, Replica

from .fake import Fake
from .test_cli import Shell, shell

__all__ = ["shell"]


def test_replicas_are_listed(fake: Fake, shell: Shell, client: Client) -> None:
    assert client.replicas() == [Replica("ab", "draining", node="n1", training_jobs=("j",))]
    assert shell("replicas", "ls") == 0
    heading, row = shell.out.splitlines()
    assert heading.split() == ["REPLICA", "STATE", "NODE", "RUNNING", "WAITING", "TOKENS", "ADAPTERS", "JOBS"]
    assert row.split() == ["ab", "draining", "n1", "0", "0", "0", "0", "j"]
    assert shell("replicas", "ls", "--json") == 0
    assert json.loads(shell.out)[0]["id"] == "ab"


def test_a_replica_is_drained(fake: Fake, shell: Shell) -> None:
    assert shell("replicas", "drain", "ab") == 0
    assert fake.last("DrainReplica").id == "ab"
    assert shell.out == "replica ab takes no new work\n"


def test_an_unknown_replica_is_not_drained(fake: Fake, shell: Shell) -> None:
    def refuse(request: object, context: grpc.ServicerContext) -> None:
        context.abort(grpc.StatusCode.NOT_FOUND, "replica 'x' not found")

    fake.handlers["DrainReplica"] = refuse
    assert shell("replicas", "drain", "x") == 1
    assert "replica 'x' not found" in shell.err
