"""Every number that a client can send, at its bounds and far beyond, through a real door and the real services."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message

from loramux_server.api.methods import METHODS
from loramux_server.app.embedded import running_app
from loramux_server.config import Settings
from loramux_server.core.bounds import LOGIT_BIAS, SAMPLING, SEED, WEIGHT, Bound
from loramux_server.core.jobs import BOUNDS, TOP_K_BOUND
from loramux_server.services.common.limits import Limits
from loramux_server.telemetry.activity import LONGEST
from tests.unit.services.fakes import FakeBackend, Script, engine_info
from tests.unit.services.tiny_tokenizer import write_tokenizer

LIMITS = {**asdict(Limits()), "max_context": 256}
KINDS = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
    FieldDescriptor.CPPTYPE_DOUBLE: None,
    FieldDescriptor.CPPTYPE_FLOAT: None,
}
FAR = (0, 1, -1, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**63 - 1, -(2**31), -(2**63))
PAGE = Bound(0, 1000)
VOCABULARY = 300

OF_REQUESTS: dict[str, Bound] = {
    **SAMPLING,
    "max_tokens": Bound(1, LIMITS["max_new_tokens"]),
    "min_tokens": Bound(0, LIMITS["max_new_tokens"]),  # at most max_tokens, which is as large here
    "n": Bound(1, LIMITS["max_choices"]),
    "logprobs": Bound(0, LIMITS["max_logprobs"]),
    "seed": SEED,
    "adapters.weight": WEIGHT,
    "entries.weight": WEIGHT,
    "logit_bias.key": Bound(0, VOCABULARY - 1),
    "logit_bias.value": LOGIT_BIAS,
    "stop_token_ids": Bound(0, VOCABULARY - 1),
    "EmbedRequest.input.token_ids.ids": Bound(0, VOCABULARY - 1),
    "EmbedRequest.dimensions": Bound(4, 4),  # those of the scripted base
    "page_size": PAGE,
    "window_seconds": Bound(0, LONGEST),
    "ProfileEngineRequest.seconds": Bound(0, LIMITS["max_profile_seconds"]),
    "files.size": Bound(0, LIMITS["max_upload_bytes"]),
    "header.size": Bound(0, 0),  # what is announced must come, and nothing comes here
    "version": Bound(1, 999_999_999),
    "ComposeAdapterRequest.rank": Bound(1, LIMITS["max_rank"]),
    "ComposeAdapterRequest.density": Bound(0, 1, above=True),
    "show_rows": Bound(0, 100),
    "show_from_line": Bound(0, 2**63 - 1),
    "after_sequence": Bound(0, 2**63 - 1),
    "compare_top_k": TOP_K_BOUND,
    "min_accuracy": Bound(0, 1, above=True),
    "layers": Bound(0, 3),  # of the base
    **{f"settings.{name}": bound.within(LIMITS) for name, bound in BOUNDS.items() if isinstance(bound, Bound)},
}
"""Bounds by the end of a field's path. A number that none fits fails the test: say here what it may be."""
UNREAD = {"messages.weight": "only rows of training data have it, and these are no requests"}


@dataclass(frozen=True)
class Number:
    """A field that is a number: where it is, and what it may be."""

    method: str
    path: tuple[str, ...]
    field: FieldDescriptor
    bound: Bound

    def values(self) -> Iterator[float]:
        """The bounds, what is just beyond, and what is far beyond, as far as the field can carry it."""
        low, high, kind = self.bound.low, self.bound.high, KINDS[self.field.cpp_type]
        if kind is not None:
            near = {int(edge) + step for edge in (low, high) if math.isfinite(edge) for step in (-1, 0, 1)}
            yield from sorted(value for value in near | set(FAR) if kind[0] <= value <= kind[1])
            return
        edges = [edge for edge in (low, high) if math.isfinite(edge)]
        yield from edges
        yield from (math.nextafter(edge, way) for edge in edges for way in (-math.inf, math.inf))
        yield from (*map(float, FAR), 5e-324, 1.7e308, math.inf, -math.inf, math.nan)


def numbers() -> Iterator[Number]:
    for method in METHODS:
        yield from _numbers(method, described(method).input_type, ())


def described(method: str) -> MethodDescriptor:
    service, _, name = method.partition("/")
    return descriptor_pool.Default().FindServiceByName(service).methods_by_name[name]


def _numbers(method: str, message: Descriptor, before: tuple[str, ...]) -> Iterator[Number]:
    for field in message.fields:
        path = (*before, field.name)
        if field.message_type is not None:
            yield from _numbers(method, field.message_type, path)
        elif field.cpp_type in KINDS:
            whole = ".".join((described(method).input_type.name, *path))
            fitting = [bound for end, bound in OF_REQUESTS.items() if whole.endswith(f".{end}") or whole == end]
            assert fitting or whole.endswith(tuple(UNREAD)), f"{whole} has no bound here: what may it be?"
            if fitting:
                yield Number(method, path, field, fitting[-1])


BASIS: dict[str, dict[str, Any]] = {
    "GenerateRequest": {"prompt": "hello", "max_tokens": LIMITS["max_new_tokens"]},
    "ScoreRequest": {"prompt": "hello", "continuation": " there"},
    "TokenizeRequest": {"prompt": "hello"},
    "EmbedRequest": {"input": [{"text": "hello"}]},
    "UploadAdapterRequest": {"header": {"name": "acme"}},
    "SetAliasRequest": {"name": "acme"},
    "ComposeAdapterRequest": {"name": "acme", "adapters": [{"adapter": "other"}]},
    "ValidateDatasetRequest": {"dataset_id": "d1"},
    "CreateJobRequest": {"name": "acme", "dataset_id": "d1"},
    "WatchJobRequest": {"job_id": "j1"},
}
"""Requests that are fine but for the number."""
BESIDE: dict[tuple[str, ...], dict[str, Any]] = {
    ("header", "files", "size"): {"header": {"name": "acme", "files": [{"name": "adapter_config.json"}]}},
    ("adapters", "weight"): {"adapters": [{"adapter": "acme"}, {"adapter": "other"}]},
    ("on_top_of", "entries", "weight"): {"on_top_of": [{"entries": [{"adapter": "acme"}]}]},
    ("gate", "min_accuracy"): {"gate": {"kind": 3}, "settings": {"validation_split": 0.1}},
    ("settings", "eval_steps"): {"settings": {"validation_split": 0.1}},
    ("settings", "early_stopping_patience"): {"settings": {"validation_split": 0.1}},
    ("settings", "replay_rows"): {"settings": {"replay": "default"}},
    ("ComposeAdapterRequest", "density"): {"method": 4},
    ("ComposeAdapterRequest", "seed"): {"method": 5},
    ("ComposeAdapterRequest", "rank"): {"method": 2},
}
"""What some numbers need beside them, by their path, or by the request's name and it."""


def request(number: Number, value: float) -> Message:
    asked = described(number.method).input_type
    beside = BESIDE.get(number.path) or BESIDE.get((asked.name, *number.path), {})
    made = message_factory.GetMessageClass(asked)(**{**BASIS.get(asked.name, {}), **beside})
    place: Any = made
    for step in number.path[:-1]:
        if step == "logit_bias":
            place.logit_bias[int(value) if number.path[-1] == "key" else 5] = 1.0 if number.path[-1] == "key" else value
            return made
        place = getattr(place, step)
        if not isinstance(place, Message):
            place = place[0] if len(place) else place.add()
    last = number.path[-1]
    if number.field.is_repeated:
        getattr(place, last).append(int(value))
    else:
        setattr(place, last, value)
    return made


async def outcome(channel: grpc.aio.Channel, number: Number, value: float) -> tuple[grpc.StatusCode, str]:
    method = described(number.method)
    kind = f"{'stream' if method.client_streaming else 'unary'}_{'stream' if method.server_streaming else 'unary'}"
    sent = request(number, value)
    call = getattr(channel, kind)(f"/{number.method}", request_serializer=lambda message: message.SerializeToString())
    try:
        answer = call(iter([sent]) if method.client_streaming else sent, timeout=30)
        if method.server_streaming:
            async for _ in answer:
                pass
        else:
            await answer
    except grpc.aio.AioRpcError as error:
        return error.code(), error.details() or ""
    return grpc.StatusCode.OK, ""


async def wrong(channel: grpc.aio.Channel, number: Number, value: float) -> str:
    """What is wrong with the answer to a value of a field; empty: nothing."""
    name = next((whole for whole in ("logit_bias", "input") if whole in number.path), number.path[-1])
    code, words = await outcome(channel, number, value)
    named = re.search(rf"\b{name}\b[^:]*: ", words) is not None
    too_large = code is grpc.StatusCode.RESOURCE_EXHAUSTED
    if code in (grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL):
        fault = "is a defect"
    elif value in number.bound:
        fault = "is refused" if named and code is grpc.StatusCode.INVALID_ARGUMENT else ""
    else:
        fault = "" if too_large or (named and code is grpc.StatusCode.INVALID_ARGUMENT) else "is taken"
    return f"{number.method} {'.'.join(number.path)} = {value}: {fault}: {code.name} {words[:200]}" if fault else ""


async def test_a_number_beyond_its_bounds_is_refused_and_one_within_is_not(tmp_path: Path) -> None:
    """A whole server, whose engine is scripted."""
    info = engine_info(VOCABULARY, tokenizer_path=str(write_tokenizer(tmp_path / "tokenizer")))
    settings = Settings(
        state_dir=tmp_path / "state",
        listen="127.0.0.1:0",
        http_listen="off",
        metrics_listen="off",
        audit={"log": "off"},
    )
    async with (
        running_app(settings, FakeBackend(info, lambda _: Script((5,)))) as app,
        grpc.aio.insecure_channel(app.address) as channel,
    ):
        found = [await wrong(channel, number, value) for number in numbers() for value in number.values()]
    assert len(found) > 900
    assert "\n".join(filter(None, found)) == ""
