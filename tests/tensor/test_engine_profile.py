"""Profiles of the engine: what is in the trace, what it costs those who generate, and what ends it early."""

from __future__ import annotations

import gzip
import json
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import count, pairwise
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch

from loramux_server.core.backend import ProfileCommand, ProfileResult
from loramux_server.core.observing.timeline import TIMELINE
from loramux_server.engine.profiling import kernels, profiler
from loramux_server.engine.transport.protocol import AbortCommand
from tests.conftest import TinyBase
from tests.engine import DEVICE, Engine, command, prompts, stack_of, version_of
from tests.tiny import write_adapter

SECONDS = 0.3


@pytest.fixture(scope="module")
def engine(tiny_base: TinyBase, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    made = Engine(tiny_base("llama"), tmp_path_factory.mktemp("profile"))
    yield made
    made.close()


@pytest.fixture
def asked(tmp_path: Path, request: pytest.FixtureRequest) -> ProfileCommand:
    return ProfileCommand(f"profile-{request.node.name}", SECONDS, str(tmp_path / "trace.json.gz"), 100_000)


@pytest.fixture(autouse=True)
def short_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "SEGMENT", 0.05)


def trace(asked: ProfileCommand) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(gzip.decompress(Path(asked.output).read_bytes()))
    return found


def result(engine: Engine, id: str) -> ProfileResult:
    found = engine.outputs[id][-1].payload
    assert isinstance(found, ProfileResult), engine.failure(id)
    return found


def test_tokens_are_the_same_and_the_trace_tells_how_they_came(
    engine: Engine, asked: ProfileCommand, tiny_base: TinyBase, tmp_path: Path
) -> None:
    adapter = version_of(write_adapter(tmp_path / "a", tiny_base("llama"), rank=4, alpha=8, seed=3, scale=0.1), 4)
    stack = stack_of((adapter, 0.7))
    alone = {i: engine.generate(prompt, 24, stack) for i, prompt in enumerate(prompts(3))}
    engine.loop._residency.unload(adapter.digest)  # so that it is loaded once more
    asked = replace(asked, seconds=1.0)
    engine.submit(asked)
    number = 0
    while not engine.outputs[asked.id]:
        batch = {f"{asked.id}-{number}-{i}": (i, prompt) for i, prompt in enumerate(prompts(3))}
        engine.run(*(command(id, prompt, 24, stack) for id, (_, prompt) in batch.items()))
        assert {id: engine.tokens(id) for id in batch} == {id: alone[i] for id, (i, _) in batch.items()}
        number += 1
    found = trace(asked)
    events = found["traceEvents"]
    assert len([e for e in events if e["ph"] != "M"]) == result(engine, asked.id).events
    tracks = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    ranges = [e for e in events if e["ph"] == "X"]
    names = Counter(e["name"] for e in ranges if not tracks[e["tid"]].startswith(("operators", "stream")))
    assert {"schedule", "prefill", "decode", "forward", "select tokens", "send outputs"} <= names.keys()
    assert {"read adapter", "load adapter"} <= names.keys()
    assert any(name.startswith("adapter-reader") for name in tracks.values())
    assert {e["args"]["sequences"] for e in ranges if e["name"] == "decode"} & {3}
    assert all(e["dur"] >= 0 and -1e3 < e["ts"] < 100e6 for e in ranges)
    steps = sorted((e["ts"], e["ts"] + e["dur"]) for e in ranges if e["name"] in ("prefill", "decode"))
    assert all(end <= start for (_, end), (start, _) in pairwise(steps))
    for forward in (e for e in ranges if e["name"] == "forward"):
        assert any(start <= forward["ts"] and forward["ts"] + forward["dur"] <= end for start, end in steps)
    of_torch = [e for e in ranges if tracks[e["tid"]].startswith("operators")]
    assert any(e["name"].startswith("aten::") for e in of_torch)
    assert any(start <= e["ts"] <= end for e in of_torch for start, end in steps)  # by the same clock
    if DEVICE != "cpu":
        assert any(name.startswith("stream") for name in tracks.values())
    assert found["otherData"]["events_dropped"] == 0
    assert not any(engine.loop.idle_state().values())


def test_an_idle_engine_tells_that_it_waited(engine: Engine, asked: ProfileCommand) -> None:
    began = time.monotonic()
    engine.run(replace(asked, kernels=False))
    assert time.monotonic() - began >= SECONDS
    waits = [e for e in trace(asked)["traceEvents"] if e["name"] == "wait for commands"]
    assert sum(e["dur"] for e in waits) > SECONDS * 0.5e6
    assert not [e for e in trace(asked)["traceEvents"] if e["name"].startswith("aten::")]


@pytest.mark.parametrize("fails", ["__enter__", "__exit__"])
def test_a_profile_goes_on_where_torchs_profiler_fails(
    engine: Engine, asked: ProfileCommand, fails: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("the device is traced by another process")

    (prompt,) = prompts(1)
    alone = engine.generate(prompt, 8)
    with monkeypatch.context() as patch:
        patch.setattr(kernels.profile, fails, broken)
        engine.submit(asked)
        while not engine.outputs[asked.id]:
            assert engine.generate(prompt, 8) == alone
    if fails == "__exit__":  # it runs on
        torch.autograd._disable_profiler()
    names = {e["name"] for e in trace(asked)["traceEvents"]}
    assert "decode" in names
    assert not [name for name in names if name.startswith("aten::")]


def test_one_at_a_time(engine: Engine, asked: ProfileCommand) -> None:
    second = replace(asked, id=f"{asked.id}-second")
    engine.run(asked, second)
    refused = engine.failure(second.id)
    assert refused is not None
    assert (refused.code.value, refused.reason) == ("resource_exhausted", "PROFILE_RUNNING")
    assert 0 < (refused.retry_after or 0) <= 1.0
    assert result(engine, asked.id).events > 0
    third = replace(asked, id=f"{asked.id}-third")
    engine.run(third)  # the next one may
    assert result(engine, third.id)


def test_events_have_a_bound_and_the_rest_is_counted(engine: Engine, asked: ProfileCommand) -> None:
    asked = replace(asked, most_events=40)
    (prompt,) = prompts(1)
    engine.submit(asked)
    while not engine.outputs[asked.id]:
        engine.generate(prompt, 8)
    told = result(engine, asked.id)
    assert told.events <= 40
    assert told.events_dropped > 0
    assert len([e for e in trace(asked)["traceEvents"] if e["ph"] != "M"]) == told.events


@pytest.mark.parametrize("recording", [True, False], ids=["while it records", "while it is written"])
def test_a_profile_that_nobody_wants_any_more(
    engine: Engine, asked: ProfileCommand, recording: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    aborted, write = Event(), profiler.write_trace

    def write_later(*arguments: Any) -> int:
        assert aborted.wait(30)
        return write(*arguments)

    monkeypatch.setattr(profiler, "write_trace", write_later)
    engine.submit(asked)
    if recording:
        engine.loop.turn()
        assert TIMELINE.recording
    else:
        while TIMELINE.recording or not engine.loop.idle_state()["profiles"]:
            engine.loop.turn()
    engine.submit(AbortCommand(asked.id))
    engine.generate(prompts(1)[0], 4)
    aborted.set()
    assert not TIMELINE.recording
    assert not any(output.payload for output in engine.outputs[asked.id])
    deadline = time.monotonic() + 30
    for number in count():  # what is being written is let go of first
        following = replace(asked, id=f"{asked.id}-next-{number}", seconds=0.01)
        engine.run(following)
        if engine.failure(following.id) is None:
            break
        assert time.monotonic() < deadline
    assert result(engine, following.id)


@pytest.mark.parametrize(
    "changes", [{"seconds": 0.0}, {"seconds": float("nan")}, {"seconds": 1e6}, {"most_events": 1}], ids=str
)
def test_what_is_out_of_bounds_is_refused(engine: Engine, asked: ProfileCommand, changes: dict[str, Any]) -> None:
    bad = replace(asked, id=f"{asked.id}-bad", **changes)
    engine.run(bad)
    refused = engine.failure(bad.id)
    assert refused is not None
    assert refused.code.value == "invalid_argument"


def test_a_file_that_cannot_be_written_is_told(engine: Engine, asked: ProfileCommand) -> None:
    engine.run(replace(asked, output=f"{asked.output}/none/x", seconds=0.01))
    refused = engine.failure(asked.id)
    assert refused is not None
    assert "cannot write the profile" in refused.message
    assert not any(engine.loop.idle_state().values())
