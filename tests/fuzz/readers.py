"""Targets that need no engine: whatever reads bytes of strangers."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import msgspec

from loramux_server.core.backend import GenerateCommand, ScoreCommand
from loramux_server.core.callers.keys import ApiKey
from loramux_server.core.callers.principal import LOCAL
from loramux_server.core.errors import Code, Error
from loramux_server.core.types import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    AdapterVersion,
    Grammar,
    GrammarKind,
    Message,
    SamplingParams,
    Stack,
    StackEntry,
)
from loramux_server.data.dataset import DatasetLimits, check_dataset
from loramux_server.engine.transport.protocol import AbortCommand, LoadCommand, PinCommand, StatsCommand
from loramux_server.engine.transport.wire import HEADER, decode, encode
from loramux_server.peft.schema import check_files
from loramux_server.services.access.bearer import _shown
from loramux_server.services.access.credentials import Credentials
from loramux_server.services.inference.prompts import encode_prompt
from loramux_server.services.inference.types import GenerateRequest
from loramux_server.text import TextTokenizer
from loramux_server.text.answers.response_format import parse_format
from loramux_server.text.chat.chat_template import ChatTemplate
from tests.unit.services.adapter_files import config_bytes, weights_bytes
from tests.unit.services.fakes import engine_info
from tests.unit.services.tiny_tokenizer import TEMPLATE, write_tokenizer

from .target import Target

DIGEST = "0123456789abcdef" * 4


def frames() -> Target:
    """What crosses between front and engine."""
    return Target("frames", _frame, [body(message) for message in messages()], modules=("loramux_server.engine",))


def messages() -> list[Any]:
    """Commands of all kinds, and outputs."""
    stack = Stack((StackEntry(AdapterVersion("acme", 3, DIGEST, 4), 0.5),))
    sampling = SamplingParams(max_tokens=3, temperature=0.7, top_p=0.5, seed=2**31, logprobs=2, logit_bias=((3, 1.0),))
    return [
        GenerateCommand("g1", (3, 4, 5), tenant="default", sampling=sampling, seconds_left=5.0),
        GenerateCommand("g2", (3, 4), stack, tenant="default"),
        GenerateCommand("g3", (3,), tenant="default", grammar=Grammar(GrammarKind.REGEX, "a|b")),
        ScoreCommand("s1", (3, 4), (5, 6), tenant="default"),
        LoadCommand("l1", stack.entries[0].adapter),
        PinCommand("p1", (stack.entries[0].adapter,)),
        StatsCommand("st1"),
        AbortCommand("g1"),
    ]


def body(message: Any) -> bytes:
    return encode(message)[HEADER.size :]


def _frame(data: bytes) -> None:
    try:
        decode(data)
    except msgspec.DecodeError:
        return


def adapters() -> Target:
    """The two files of an adapter: the length of the configuration in four bytes, then both."""
    info = engine_info(400)

    def run(data: bytes) -> None:
        size = int.from_bytes(data[:4], "little") % (len(data) + 1)
        config, weights = data[4 : 4 + size], data[4 + size :]
        files = {CONFIG_FILE: bytearray(config), WEIGHTS_FILE: bytearray(weights)}
        check_files(files, info.linear_modules, info.base_fingerprint)

    def packed(config: bytes, weights: bytes) -> bytes:
        return len(config).to_bytes(4, "little") + config + weights

    seeds = [
        packed(config_bytes(), weights_bytes(info)),
        packed(config_bytes(4, ("q_proj", "up_proj"), rank_pattern={"q_proj": 2}), weights_bytes(info, 4)),
        packed(config_bytes(bias="none", use_rslora=True, layers_to_transform=[0, 1]), weights_bytes(info)[:900]),
    ]
    return Target("adapters", run, seeds, modules=("loramux_server.peft",))


def datasets() -> Target:
    """Rows of training data in all spellings."""
    tokenizer = _tokenizer()
    limits = DatasetLimits(max_bytes=1 << 20, max_rows=1000)

    def run(data: bytes) -> None:
        check_dataset(data, tokenizer, max_length=256, limits=limits, held_out=bool(data) and data[0] % 2 == 0)

    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo", "weight": 0}]
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    rows: list[dict[str, Any]] = [
        {"messages": turns},
        {"prompt": "a", "completion": "b", "on_top_of": [{"adapter": "acme", "weight": 0.5}]},
        {"text": "all of it"},
        {"prompt": turns[:1], "chosen": turns[1:], "rejected": [{"role": "assistant", "content": "no"}]},
        {"messages": [turns[0], {"role": "assistant", "tool_calls": [call]}], "tools": [{"type": "function"}]},
        {"messages": turns, "expect": ["yo"], "chat_template_kwargs": {"x": 1}},
    ]
    seeds = [json.dumps(row).encode() + b"\n" for row in rows] + [json.dumps(rows).encode(), b"\xef\xbb\xbf{}\n[]\n"]
    return Target("datasets", run, seeds, modules=("loramux_server.data", "loramux_server.text"))


def templates() -> Target:
    """A chat template, a NUL, then messages, tools and arguments as a caller may write them."""
    fixed = _tokenizer()

    def run(data: bytes) -> None:
        source, _, rest = data.decode("utf-8", "surrogateescape").partition("\0")
        request = _asked(rest)
        turns = [turn.fields for turn in request.messages]
        for render in (
            lambda: ChatTemplate(source, max_seconds=0.2, max_chars=10_000).render(turns, add_generation_prompt=True),
            lambda: encode_prompt(fixed, request),
        ):
            try:
                render()
            except Error as error:
                if error.code is Code.INTERNAL:
                    raise

    turns = [["user", "hi <|im_end|>"], ["assistant", "yo"]]
    given = json.dumps([turns, '[{"type": "function", "function": {"name": "f"}}]', '{"enable_thinking": true}'])
    sources = [
        TEMPLATE,
        "{% for m in messages %}{{ m.content | tojson }}{{ loop.index ** 2 }}{% endfor %}",
        "{% set ns = namespace(x=0) %}{% for i in range(9) %}{% set ns.x = ns.x + i %}{% endfor %}{{ ns.x }}",
        "{{ raise_exception('no') }}",
        "{% macro f(a) %}{{ a * 3 }}{% endmacro %}{{ f(messages[0]['content']) }}{{ ''.__class__ }}",
    ]
    seeds = [f"{source}\0{given}".encode() for source in sources]
    return Target("templates", run, seeds, modules=("loramux_server.text",))


def _asked(text: str) -> GenerateRequest:
    """A request of a JSON list: turns (role and content), tools, arguments. What is no such list is one message."""
    try:
        turns, tools, kwargs = json.loads(text)
        made = tuple(Message(str(role), str(content)) for role, content in turns)
        return GenerateRequest(messages=made, tools=str(tools), chat_template_kwargs=str(kwargs), principal=LOCAL)
    except (ValueError, TypeError, RecursionError):
        return GenerateRequest(messages=(Message("user", text),), principal=LOCAL)


def formats() -> Target:
    """``response_format`` as a door hands it over."""

    def run(data: bytes) -> None:
        try:
            given = json.loads(data.decode("utf-8", "surrogatepass"))
        except (ValueError, RecursionError):
            return
        if isinstance(given, dict):
            parse_format(given)

    shapes: list[dict[str, Any]] = [
        {"type": "json_schema", "json_schema": '{"type": "object"}'},
        {"type": "regex", "regex": "(a+)+"},
        {"type": "choice", "choice": ["a", "b"]},
        {"type": "grammar", "grammar": "start: /x/"},
        {"type": "json_object"},
    ]
    return Target("formats", run, [json.dumps(shape).encode() for shape in shapes], modules=("loramux_server.text",))


def credentials() -> Target:
    """Values of the ``authorization`` metadata, one a line."""

    def run(data: bytes) -> None:
        values = tuple(line.decode("utf-8", "surrogateescape") for line in data.split(b"\n"))
        shown = _shown(Credentials(values))
        assert not isinstance(shown, ApiKey) or len(shown.digest) == 64

    key = ApiKey.generate().text.encode()
    seeds = [
        b"Bearer " + key,
        b"bearer  " + key + b" ",
        b"Basic dXNlcjpwdw==",
        b"Bearer a.b.c",
        key,
        b"Bearer x\nBearer y",
    ]
    return Target(
        "credentials", run, seeds, modules=("loramux_server.services.access", "loramux_server.core.callers.keys")
    )


def _tokenizer() -> TextTokenizer:
    return TextTokenizer.load(write_tokenizer(Path(tempfile.mkdtemp(prefix="loramux-fuzz-"))))
