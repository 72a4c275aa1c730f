"""Steps launched ahead on a CUDA device: the same answers, and a host that waits for tokens alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from loramux_server.engine.transport.protocol import Output
from tests.engine import Engine, command
from tests.tensor.engine_cases import STACKS, Cases, check_empty, make_cases

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 0),
        reason="needs a CUDA device with FlashAttention",
    ),
]
ON_GPU: dict[str, Any] = {"device": "cuda", "dtype": "bfloat16", "kv_cache_memory": 256 << 20, "speculate": "off"}
SETTINGS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.8, "seed": 1},
    {"temperature": 0.8, "seed": 2, "top_p": 0.9, "top_k": 40},
    {"repetition_penalty": 1.2, "frequency_penalty": 0.3, "min_tokens": 20, "logit_bias": ((7, 1.0),)},
    {"logprobs": 3},
]


@pytest.fixture(scope="module")
def cases(tiny_base, make_adapter, tmp_path_factory) -> Iterator[Cases]:  # type: ignore[no-untyped-def]
    made = make_cases(tiny_base("llama"), tmp_path_factory.mktemp("ahead"), make_adapter)
    yield made
    made.close()


def engine_that(cases: Cases, choice: str) -> Engine:
    return cases.engine(**ON_GPU, async_scheduling=choice)


def test_answers_are_those_of_steps_that_wait(cases: Cases) -> None:
    ahead, behind = engine_that(cases, "auto"), engine_that(cases, "off")
    for number, settings in enumerate(SETTINGS):
        stack = cases.stack(STACKS[number])
        found = [engine.generate(cases.prompts[number], 24, stack, **settings) for engine in (ahead, behind)]
        assert found[0] == found[1], settings
    check_empty(ahead)


def test_the_host_waits_for_tokens_alone(cases: Cases) -> None:
    """Torch raises where it would wait for the device; the event of a step's one copy is the only other wait.

    What the tests' engine notes of each step would wait too, so the steps and the outputs are taken as they are.
    """
    engine = engine_that(cases, "on")
    engine.runner.run = type(engine.runner).run.__get__(engine.runner)  # type: ignore[method-assign]

    def take(outputs: list[Output]) -> None:
        for output in outputs:
            engine.outputs[output.id].append(output)

    engine.loop._outbox._send = take
    for number, settings in enumerate(SETTINGS):
        engine.submit(command(f"r{number}", cases.prompts[number], 60, cases.stack(STACKS[number]), **settings))
    for _ in range(8):
        engine.loop.turn()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(20):
            engine.loop.turn()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    engine.finish(*(f"r{number}" for number in range(len(SETTINGS))))
    check_empty(engine)
