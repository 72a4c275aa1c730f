"""What is read of a caller's, here and in the client, costs no more than its length: a product would hold others up."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from loramux import LoramuxError
from loramux._rows.json_rows import json_rows
from loramux._wire.files import upload_dataset
from loramux.convert import convert
from loramux.v1 import inference_pb2 as pb
from loramux_server.api.convert.inference import generate_from_proto
from loramux_server.core.call import Call
from loramux_server.core.callers.principal import LOCAL
from loramux_server.core.errors import Error
from loramux_server.core.types import SamplingParams
from loramux_server.peft.config import parse_config
from loramux_server.services.common.limits import Limits
from loramux_server.services.inference.checks import check_generation
from loramux_server.store.paging import read_token
from loramux_server.text import StopMatcher
from loramux_server.text.answers.response_format import parse_format
from loramux_server.text.control import ControlGuard

Work = Callable[[int, Path], Callable[[], object]]
"""Makes an input of about as many parts as asked for; gives what is done with it."""


def tools(size: int, _: Path) -> Callable[[], object]:
    guard = ControlGuard(["<|im_start|>", "<|im_end|>"], ["<think>"], "<|break|>")
    properties = {f"p{i}<|im_end|>": {"type": "string", "enum": ["<think>", f"\\ufdd{i % 10}"]} for i in range(size)}
    tool = {"function": {"name": "f", "parameters": {"properties": properties}}}

    def work() -> str:
        _, marked, markers = guard.mark([{"role": "user", "content": "x"}], [tool])
        return guard.break_marked(json.dumps(marked, ensure_ascii=False), markers)

    return work


def stops(size: int, _: Path) -> Callable[[], object]:
    words = [("ab" * 256)[: 512 - i] + "c" for i in range(16)]

    def work() -> None:
        matcher = StopMatcher(words)
        for i in range(size):
            matcher.push("ab" if i % 300 else "x", hidden=i % 7 == 0)

    return work


def request(size: int, _: Path) -> Callable[[], object]:
    bias = {i % (size // 2): 1.0 for i in range(size)}
    data = pb.GenerateRequest(messages=[{"role": "user"}] * size, stop=["x"] * size, logit_bias=bias)
    data.adapters.extend([pb.GenerateRequest().adapters.add(adapter="a")] * size)
    call = Call("Generate", "x", LOCAL)
    limits = Limits(max_messages=1 << 30, max_logit_bias=1 << 30)

    def work() -> None:
        with suppress(Error):
            check_generation(generate_from_proto(data, call, SamplingParams()), limits, 1 << 20)

    return work


def sampling(size: int, _: Path) -> Callable[[], object]:
    params = SamplingParams(stop_token_ids=tuple(range(size)))
    return lambda: [params.end_ids(range(size), shaped) for shaped in (True, False)]


def shapes(size: int, _: Path) -> Callable[[], object]:
    def work() -> None:
        for kind in ("json_schema", "regex", "grammar"):
            parse_format({"type": kind, kind: '{"a": "(a+)+$"}' * (size // 4)})
        parse_format({"type": "choice", "choice": ["\n" * (size // 64)] * 256})

    return work


def adapter_config(size: int, _: Path) -> Callable[[], object]:
    names = [f"model.layers.{i}.q_proj" for i in range(size)]
    found = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": names, "layers_pattern": "layers"}
    found |= {"layers_to_transform": list(range(size)), "rank_pattern": {f"{name}.x": 4 for name in names}}
    data = json.dumps({**found, "alpha_pattern": {f"^{name}.x": 4 for name in names}}).encode()

    def work() -> None:
        config = parse_config(data)
        config.targets(names)
        list(config.scales(names))

    return work


def page_token(size: int, _: Path) -> Callable[[], object]:
    return lambda: read_token("W1tb" * size)


def table(header: Callable[[int], str]) -> Work:
    def make(size: int, folder: Path) -> Callable[[], object]:
        path = folder / "rows.csv"
        path.write_text(header(size) + "\n" + "\n" * size + ",".join("x" * size) + "\n")
        return lambda: list(upload_dataset(path))

    return make


def listed(text: Callable[[int], str]) -> Work:
    def make(size: int, folder: Path) -> Callable[[], object]:
        path = folder / "rows.json"
        path.write_text(text(size))
        return lambda: list(json_rows(path))

    return make


def converted(size: int, folder: Path) -> Callable[[], object]:
    path = folder / "rows.jsonl"
    turns = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}] * size
    row = {"conversations": turns, **{f"field {i}": i for i in range(size)}}
    path.write_text(json.dumps(row) + "\n" + '{"question": "a", "answer": "b"}\n' * size)
    return lambda: convert(path, folder / "made.jsonl")


WORK: dict[str, Work] = {
    "tools": tools,
    "stop strings": stops,
    "request": request,
    "stop tokens": sampling,
    "response_format": shapes,
    "adapter_config": adapter_config,
    "page token": page_token,
    "one column many times": table(lambda size: ",".join(["prompt"] * size * 16)),
    "many columns": table(lambda size: "prompt,completion," + ",".join(f"c{i}" for i in range(size))),
    "list of rows": listed(lambda size: "[" + ",".join(['{"a": "]}"}'] * size) + "]"),
    "one long row": listed(lambda size: '[{"a": [' + ",".join(['"\\\\\\""'] * size * 64) + "]}]"),
    "a list without end": listed(lambda size: "[" + " " * size * 256 + "{" * size),
    "convert": converted,
}
SIZE = 500
TIMES = 4


@pytest.mark.parametrize("name", WORK)
def test_field_01_work_grows_with_the_length_alone(name: str, tmp_path: Path) -> None:
    def cost(size: int) -> tuple[int, float]:
        """Lines of Python that are run, and seconds of this thread's processor time without counting them."""
        work = WORK[name](size, tmp_path)
        return steps(work), min(seconds(work) for _ in range(3))

    lines, took = cost(SIZE)
    more_lines, more_took = cost(TIMES * SIZE)
    assert more_lines < 1.5 * TIMES * lines
    # What C does in one line shows in the time: sixteen times as much for a product.
    assert more_took < 2.5 * TIMES * took + 0.05


def steps(work: Callable[[], object]) -> int:
    count = 0

    def trace(frame: FrameType, event: str, arg: object) -> Any:
        nonlocal count
        count += 1
        return trace

    sys.settrace(trace)
    try:
        run(work)
    finally:
        sys.settrace(None)
    return count


def seconds(work: Callable[[], object]) -> float:
    begin = time.thread_time()
    run(work)
    return time.thread_time() - begin


def run(work: Callable[[], object]) -> None:
    with suppress(Error, LoramuxError):  # to refuse an input is fine, at the same price
        work()
