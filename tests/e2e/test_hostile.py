"""Hostile uploads, requests and metadata against a real server: each gets its status, and others notice nothing."""

from __future__ import annotations

import json
import os
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc
import pytest

import loramux
from loramux.v1 import adapters_pb2, adapters_pb2_grpc, common_pb2, inference_pb2, inference_pb2_grpc
from tests.e2e.server_process import ServerProcess, server_process
from tests.e2e.test_random_kills_real import Real
from tests.tiny import write_model
from tests.unit.services.adapter_files import CONFIG, WEIGHTS, config_bytes, weights_bytes

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

INFO = Real.info
NAN, INF = float("nan"), float("inf")
BEYOND = [2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, -(2**63)]
GOOD = {CONFIG: config_bytes(), WEIGHTS: weights_bytes(INFO)}
INVALID = grpc.StatusCode.INVALID_ARGUMENT


@dataclass
class Front:
    """The server, and raw stubs for what the client would never send."""

    server: ServerProcess
    channel: grpc.Channel
    client: loramux.Client

    @property
    def inference(self) -> Any:
        return inference_pb2_grpc.InferenceServiceStub(self.channel)

    @property
    def adapters(self) -> Any:
        return adapters_pb2_grpc.AdapterServiceStub(self.channel)

    def upload(self, files: dict[str, bytes], name: str = "hostile", **header: Any) -> Any:
        def messages() -> Iterator[adapters_pb2.UploadAdapterRequest]:
            yield adapters_pb2.UploadAdapterRequest(header=adapters_pb2.UploadAdapterHeader(name=name, **header))
            for file, data in files.items():
                for at in range(0, max(len(data), 1), 1 << 20):
                    chunk = common_pb2.FileChunk(name=file, data=data[at : at + (1 << 20)])
                    yield adapters_pb2.UploadAdapterRequest(chunk=chunk)

        return self.adapters.UploadAdapter(messages(), timeout=60)


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    folder = tmp_path_factory.mktemp("hostile")
    model = write_model(folder / "model", "llama")
    flags = ("--device", "cpu", "--dtype", "float32", "--kv-cache-memory", "16MiB", "--metrics-listen", "127.0.0.1:0")
    with server_process(folder, "--model", str(model), "--state-dir", str(folder / "state"), *flags) as server:
        server.wait_for("is ready")
        with grpc.insecure_channel(server.address) as channel, loramux.Client(server.address, timeout=60) as client:
            yield Front(server, channel, client)
        log = "\n".join(server.lines)
        assert "Traceback" not in log, log
        assert "call failed" not in log, log


@pytest.fixture(autouse=True)
def bystander(front: Front) -> Iterator[None]:
    """A stream that runs meanwhile gives what it always gives; nothing hostile stays behind."""
    alone = front.client.generate("the quick brown fox", max_tokens=16, ignore_eos=True).choices[0].token_ids
    said: list[Any] = []

    def ask() -> None:
        said.append(front.client.generate("the quick brown fox", max_tokens=16, ignore_eos=True).choices[0].token_ids)

    thread = threading.Thread(target=ask)
    thread.start()
    yield
    thread.join(60)
    left = [adapter.name for adapter in front.client.adapters.list()]
    for name in left:
        front.client.adapters.delete(name)
    assert said == [alone]
    assert left == []


def refused(call: Callable[[], Any], *codes: grpc.StatusCode) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    error: Any = caught.value
    assert error.code() in codes, (error.code(), error.details())
    for leak in ("Traceback", "/state/", "0x", 'File "'):
        assert leak not in error.details()
    return caught.value


def tensors(**shapes: dict[str, Any]) -> bytes:
    header = json.dumps(shapes).encode()
    return struct.pack("<Q", len(header)) + header


def weights(dtype: str = "F32", value: float = 0.5, b_rows: int = 64) -> bytes:
    """Weights whose first B has another type, value or number of rows."""
    data = bytearray(weights_bytes(INFO))
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    name = next(n for n in header if n.endswith("lora_B.weight"))
    start = 8 + size + header[name]["data_offsets"][0]
    data[start : start + 4] = struct.pack("<f", value)
    header[name]["dtype"], header[name]["shape"][0] = dtype, b_rows
    encoded = json.dumps(header).encode()
    return struct.pack("<Q", len(encoded)) + encoded + bytes(data[8 + size :])


def config(**changes: Any) -> bytes:
    changed = {**json.loads(GOOD[CONFIG]), **changes}
    return json.dumps({key: value for key, value in changed.items() if value is not None}).encode()


UPLOADS: dict[str, dict[str, bytes]] = {
    "empty": {**GOOD, WEIGHTS: b""},
    "seven bytes": {**GOOD, WEIGHTS: b"1234567"},
    "zip": {**GOOD, WEIGHTS: b"PK\x03\x04" + b"x" * 500},
    "pickle": {**GOOD, WEIGHTS: b"\x80\x04\x95" + b"x" * 500},
    "html": {**GOOD, WEIGHTS: b"<!doctype html><html>" * 30},
    "header of 2^63": {**GOOD, WEIGHTS: struct.pack("<Q", 2**63) + b"{}"},
    "header of 200 MB": {**GOOD, WEIGHTS: struct.pack("<Q", 200 << 20) + b"{}"},
    "header is no JSON": {**GOOD, WEIGHTS: struct.pack("<Q", 4) + b"nope"},
    "header is a list": {**GOOD, WEIGHTS: struct.pack("<Q", 2) + b"[]"},
    "header is deep": {**GOOD, WEIGHTS: struct.pack("<Q", 200_000) + b"[" * 200_000},
    "shape overflows": {**GOOD, WEIGHTS: tensors(a={"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 0]})},
    "shape of 10^18": {**GOOD, WEIGHTS: tensors(a={"dtype": "F32", "shape": [10**18], "data_offsets": [0, 0]})},
    "shape is negative": {**GOOD, WEIGHTS: tensors(a={"dtype": "F32", "shape": [-1], "data_offsets": [0, 0]})},
    "many tensors": {
        **GOOD,
        WEIGHTS: tensors(**{f"t{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(20_000)}),
    },
    "NaN": {**GOOD, WEIGHTS: weights(value=NAN)},
    "infinite": {**GOOD, WEIGHTS: weights(value=INF)},
    "float64": {**GOOD, WEIGHTS: weights("F64")},
    "int": {**GOOD, WEIGHTS: weights("I32")},
    "float8": {**GOOD, WEIGHTS: weights("F8_E4M3")},
    "unknown type": {**GOOD, WEIGHTS: weights("F7")},
    "other shape": {**GOOD, WEIGHTS: weights(b_rows=63)},
    "rank 0": {**GOOD, CONFIG: config(r=0)},
    "rank -1": {**GOOD, CONFIG: config(r=-1)},
    "rank 10^6": {**GOOD, CONFIG: config(r=10**6)},
    "rank by pattern": {**GOOD, CONFIG: config(rank_pattern={"q_proj": 10**6})},
    "alpha NaN": {**GOOD, CONFIG: config(lora_alpha=NAN)},
    "alpha infinite": {**GOOD, CONFIG: config(lora_alpha=INF)},
    "alpha 1e30": {**GOOD, CONFIG: config(lora_alpha=1e30)},
    "alpha is text": {**GOOD, CONFIG: config(lora_alpha="16")},
    "alpha is missing": {
        **GOOD,
        CONFIG: json.dumps({"peft_type": "LORA", "r": 2, "target_modules": ["q_proj"]}).encode(),
    },
    "pickled weights": {CONFIG: GOOD[CONFIG], "adapter_model.bin": b"\x80\x04."},
    "only the config": {CONFIG: GOOD[CONFIG]},
    "only the weights": {WEIGHTS: GOOD[WEIGHTS]},
    "nothing": {},
    "path upwards": {**GOOD, "../evil": b"x"},
    "absolute path": {**GOOD, "/etc/evil": b"x"},
    "null in a name": {**GOOD, "a\0b": b"x"},
    "code": {**GOOD, "modeling.py": b"raise SystemExit"},
    "a module to import": {**GOOD, CONFIG: config(auto_mapping={"base_model_class": "X", "parent_library": "os"})},
}


@pytest.mark.parametrize("case", UPLOADS)
def test_hostile_adapter_files(front: Front, case: str) -> None:
    started = time.monotonic()
    refused(lambda: front.upload(UPLOADS[case]), INVALID)
    assert time.monotonic() - started < 30


def test_a_pattern_that_would_backtrack_is_never_run(front: Front) -> None:
    """PEFT's patterns are taken, since the tensors say which modules are meant."""
    started = time.monotonic()
    front.upload({**GOOD, CONFIG: config(target_modules="(a+)+$" + "a" * 500)}, name="pattern")
    assert time.monotonic() - started < 5
    front.client.adapters.delete("pattern")


def test_another_bases_adapter(front: Front) -> None:
    other = weights_bytes(INFO, fingerprint="0" * 64)
    refused(lambda: front.upload({**GOOD, WEIGHTS: other}), grpc.StatusCode.FAILED_PRECONDITION)


@pytest.mark.parametrize(
    "name",
    ["../x", "..%2f", "/abs", "C:\\", "a\0b", ".", "..", "", "x" * 10_000, "A B", "base", "-rf", "a/b", "ü", "a@1"],
)
def test_names_that_are_paths(front: Front, name: str) -> None:
    refused(lambda: front.upload(GOOD, name=name), INVALID)
    codes = (INVALID, grpc.StatusCode.NOT_FOUND)
    refused(lambda: front.adapters.GetAdapter(adapters_pb2.GetAdapterRequest(adapter=name), timeout=30), *codes)
    stack = [common_pb2.StackEntry(adapter=name)]
    asked = inference_pb2.GenerateRequest(prompt="x", adapters=stack)
    refused(lambda: front.inference.GenerateOnce(asked, timeout=30), *codes)


REQUESTS: dict[str, dict[str, Any]] = {
    "no prompt": {"prompt": None},
    "empty prompt": {"prompt": ""},
    "temperature -1": {"temperature": -1.0},
    "temperature NaN": {"temperature": NAN},
    "temperature infinite": {"temperature": INF},
    "temperature 1e9": {"temperature": 1e9},
    "top_p 0": {"top_p": 0.0},
    "top_p 2": {"top_p": 2.0},
    "top_p NaN": {"top_p": NAN},
    "top_k -5": {"top_k": -5},
    "min_p 2": {"min_p": 2.0},
    "repetition 1e30": {"repetition_penalty": 1e30},
    "repetition NaN": {"repetition_penalty": NAN},
    "presence -1e30": {"presence_penalty": -1e30},
    "frequency NaN": {"frequency_penalty": NAN},
    "max_tokens 0": {"max_tokens": 0},
    "max_tokens -1": {"max_tokens": -1},
    "n 0": {"n": 0},
    "n 2^31-1": {"n": 2**31 - 1},
    "logprobs 2^31-1": {"logprobs": 2**31 - 1},
    "logprobs -2": {"logprobs": -2},
    "min_tokens -1": {"min_tokens": -1},
    "bias beyond the vocabulary": {"logit_bias": {2**31 - 1: 1.0}},
    "bias before the vocabulary": {"logit_bias": {-1: 1.0}},
    "bias NaN": {"logit_bias": {3: NAN}},
    "stop ids beyond the vocabulary": {"stop_token_ids": [2**31 - 1]},
    "stop ids before it": {"stop_token_ids": [-1]},
    "empty stop": {"stop": [""]},
    "ten thousand stops": {"stop": ["x"] * 10_000},
    "a thousand adapters": {"adapters": [common_pb2.StackEntry(adapter=f"a{i}") for i in range(1000)]},
    "one adapter twice": {"adapters": [common_pb2.StackEntry(adapter="a")] * 2},
    "weight NaN": {"adapters": [common_pb2.StackEntry(adapter="a", weight=NAN)]},
    "weight infinite": {"adapters": [common_pb2.StackEntry(adapter="a", weight=INF)]},
    "weight 1e30": {"adapters": [common_pb2.StackEntry(adapter="a", weight=1e30)]},
    "tools are no JSON": {"tools": "{", "prompt": None, "messages": [common_pb2.Message(role="user", content="x")]},
    "a template from outside": {
        "chat_template_kwargs": '{"chat_template": "{{ 1 }}"}',
        "prompt": None,
        "messages": [common_pb2.Message(role="user", content="x")],
    },
    "request id with a line break": {"request_id": "a\nb"},
}


@pytest.mark.parametrize("case", REQUESTS)
def test_hostile_requests(front: Front, case: str) -> None:
    request = inference_pb2.GenerateRequest(**{"prompt": "x", **REQUESTS[case]})
    refused(lambda: front.inference.GenerateOnce(request, timeout=30), INVALID)
    refused(lambda: [*front.inference.Generate(request, timeout=30)], INVALID)


def test_zero_temperature_and_weights_of_adapters_that_are_off(front: Front) -> None:
    request = inference_pb2.GenerateRequest(prompt="x", temperature=0.0, max_tokens=3)
    assert front.inference.GenerateOnce(request, timeout=30).choices


@pytest.mark.parametrize("seed", BEYOND)
def test_seeds_at_the_edges(front: Front, seed: int) -> None:
    request = inference_pb2.GenerateRequest(prompt="x", seed=seed, temperature=1.0, n=3, max_tokens=3)
    once, again = (front.inference.GenerateOnce(request, timeout=30) for _ in range(2))
    assert [c.token_ids for c in once.choices] == [c.token_ids for c in again.choices]


SHAPES: dict[str, dict[str, Any]] = {
    "broken regex": {"regex": "(("},
    "empty regex": {"regex": ""},
    "no JSON": {"json_schema": "{"},
    "a megabyte": {"json_schema": json.dumps({"enum": ["x" * 1000] * 1000})},
    "endless reference": {"json_schema": '{"$ref": "#"}'},
    "no choices": {"choice": inference_pb2.ChoiceList()},
    "empty grammar": {"grammar": ""},
    "broken grammar": {"grammar": "start: (((("},
    "grammar without a start": {"grammar": 'a: "x"'},
}


@pytest.mark.parametrize("case", SHAPES)
def test_hostile_shapes(front: Front, case: str) -> None:
    shape = inference_pb2.ResponseFormat(**SHAPES[case])
    request = inference_pb2.GenerateRequest(prompt="x", response_format=shape, max_tokens=4)
    started = time.monotonic()
    refused(
        lambda: front.inference.GenerateOnce(request, timeout=60),
        INVALID,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    )
    assert time.monotonic() - started < 40


def test_nested_quantifiers_are_answered_or_refused_in_time(front: Front) -> None:
    shape = inference_pb2.ResponseFormat(regex="((a{1,1000}){1,1000}){1,1000}")
    request = inference_pb2.GenerateRequest(prompt="x", response_format=shape, max_tokens=4)
    started = time.monotonic()
    try:
        text = front.inference.GenerateOnce(request, timeout=60).choices[0].text
    except grpc.RpcError as error:
        refusal: Any = error
        assert refusal.code() in (INVALID, grpc.StatusCode.RESOURCE_EXHAUSTED)
    else:
        assert set(text) == {"a"}
    assert time.monotonic() - started < 40


def test_an_adapter_that_nobody_has(front: Front) -> None:
    asked = inference_pb2.GenerateRequest(prompt="x", adapters=[common_pb2.StackEntry(adapter="nobody", weight=0.0)])
    refused(lambda: front.inference.GenerateOnce(asked, timeout=30), grpc.StatusCode.NOT_FOUND)


def test_prompts_beyond_every_limit(front: Front) -> None:
    five = inference_pb2.GenerateRequest(prompt="a" * (5 << 20))
    refused(lambda: front.inference.GenerateOnce(five, timeout=60), INVALID, grpc.StatusCode.RESOURCE_EXHAUSTED)
    nine = inference_pb2.GenerateRequest(prompt="a" * (9 << 20))
    refused(lambda: front.inference.GenerateOnce(nine, timeout=60), grpc.StatusCode.RESOURCE_EXHAUSTED)
    explosive = inference_pb2.GenerateRequest(prompt="\U000e0001" * 200_000)
    refused(lambda: front.inference.GenerateOnce(explosive, timeout=60), INVALID)


@pytest.mark.parametrize(
    "data",
    [b"\xff", os.urandom(64), b"\x0a\xff\xff\xff\xff\x7f", b"\x0a\x02\xff\xfe", b"\x0a\x04\xed\xa0\x80x"],
    ids=["byte", "random", "length beyond the end", "no UTF-8", "lone surrogate"],
)
def test_bytes_that_are_no_message(front: Front, data: bytes) -> None:
    method = front.channel.unary_unary("/loramux.v1.InferenceService/GenerateOnce")
    refused(lambda: method(data, timeout=30), INVALID)


def test_fields_that_nobody_knows_are_ignored(front: Front) -> None:
    data = inference_pb2.GenerateRequest(prompt="x", max_tokens=2).SerializeToString() + b"\xf8\x3f\x01"
    method = front.channel.unary_unary("/loramux.v1.InferenceService/GenerateOnce")
    assert inference_pb2.GenerateResult.FromString(method(data, timeout=30)).choices


def test_a_compressed_bomb(front: Front) -> None:
    request = inference_pb2.GenerateRequest(prompt="\0" * (60 << 20))
    call = front.inference.GenerateOnce
    refused(lambda: call(request, timeout=60, compression=grpc.Compression.Gzip), grpc.StatusCode.RESOURCE_EXHAUSTED)


@pytest.mark.parametrize("metadata", [(("x-a", "v" * 60_000),), tuple((f"x-{i}", "v") for i in range(3000))])
def test_metadata_beyond_the_limit(front: Front, metadata: tuple[tuple[str, str], ...]) -> None:
    request = inference_pb2.TokenizeRequest(prompt="x")
    refused(
        lambda: front.inference.Tokenize(request, timeout=30, metadata=metadata),
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNAVAILABLE,
    )


def test_ids_in_metadata_that_are_none_are_replaced(front: Front) -> None:
    call = front.inference.Tokenize.with_call
    _, done = call(inference_pb2.TokenizeRequest(prompt="x"), metadata=(("x-request-id", "a b"),), timeout=30)
    assert len(dict(done.trailing_metadata())["x-request-id"]) == 32


def test_a_client_that_leaves_frees_what_it_had(front: Front) -> None:
    request = inference_pb2.GenerateRequest(prompt="x", max_tokens=200, ignore_eos=True, n=8)
    for _ in range(5):
        call = front.inference.Generate(request)
        next(call)
        call.cancel()
    deadline = time.monotonic() + 30
    while "loramux_requests_running 0.0" not in front.server.metrics():
        assert time.monotonic() < deadline, "requests that nobody waits for still run"


def test_deadlines(front: Front) -> None:
    request = inference_pb2.GenerateRequest(prompt="x", max_tokens=200, ignore_eos=True, n=16)
    refused(lambda: front.inference.GenerateOnce(request, timeout=0.01), grpc.StatusCode.DEADLINE_EXCEEDED)


def test_an_upload_that_dies_half_way_frees_the_name(front: Front) -> None:
    class Died(Exception):
        pass

    def messages() -> Iterator[adapters_pb2.UploadAdapterRequest]:
        yield adapters_pb2.UploadAdapterRequest(header=adapters_pb2.UploadAdapterHeader(name="half"))
        yield adapters_pb2.UploadAdapterRequest(chunk=common_pb2.FileChunk(name=WEIGHTS, data=b"x" * 1000))
        raise Died

    with pytest.raises(grpc.RpcError):
        front.adapters.UploadAdapter(messages(), timeout=30)
    made = front.upload(GOOD, name="half")
    assert made.version == 1
    again = front.upload(GOOD, name="half")
    assert again.version == 1  # the same content is the same version
    front.client.adapters.delete("half")


def test_two_publish_one_name_at_once(front: Front) -> None:
    made: list[int] = []

    def publish(value: float) -> None:
        made.append(front.upload({**GOOD, WEIGHTS: weights_bytes(INFO, b=value)}, name="both").version)

    threads = [threading.Thread(target=publish, args=(value,)) for value in (0.25, 0.75)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(made) == [1, 2]
    front.client.adapters.delete("both")


def test_a_delete_while_in_use(front: Front) -> None:
    front.upload(GOOD, name="leaving")
    request = inference_pb2.GenerateRequest(
        prompt="x", adapters=[common_pb2.StackEntry(adapter="leaving")], max_tokens=150, ignore_eos=True
    )
    stream = front.inference.Generate(request, timeout=60)
    next(stream)
    front.client.adapters.delete("leaving")
    refused(lambda: front.inference.GenerateOnce(request, timeout=30), grpc.StatusCode.NOT_FOUND)
    assert sum(len(piece.token_ids) for piece in stream) >= 100
