"""What was found once stays mended; a few seconds of new inputs of each target find nothing."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest
from hypothesis import HealthCheck, given, settings

from . import readers
from .__main__ import fuzz, targets
from .campaign import mutated
from .door import Server
from .requests import requests
from .target import Target, found_before

READERS: list[Callable[[], Target]] = [
    readers.frames,
    readers.credentials,
    readers.adapters,
    readers.datasets,
    readers.templates,
    readers.formats,
]


@pytest.mark.parametrize("make", READERS, ids=lambda make: make.__name__)
def test_seeds_and_earlier_findings(make: Callable[[], Target]) -> None:
    target = make()
    seeds = [*target.seeds, *found_before(target.name)]
    draw = random.Random(1)
    for data in (*seeds, *(mutated(draw, seeds) for _ in range(50))):
        target(data)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.channel.close()


def test_earlier_findings_at_the_door(server: Server) -> None:
    for data in found_before("door"):
        server.take(data)


@given(asked=requests())
@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_request_is_answered_or_refused(server: Server, asked: tuple[str, bytes]) -> None:
    server.call(*asked)


@pytest.mark.slow
@pytest.mark.parametrize("name", targets())
def test_a_few_seconds_of_each_target(name: str) -> None:
    record = fuzz(name, 10**9, 3.0, 7)
    assert not record["finding"], record["finding"]
    assert record["inputs"] > 20
