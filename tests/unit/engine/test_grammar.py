"""Grammars of callers in processes of their own: what is asked of them, and what they may do to us."""

from __future__ import annotations

import itertools
import json
import os
import queue
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from loramux_server.core.backend import GenerateCommand
from loramux_server.core.errors import Code, invalid_field
from loramux_server.core.types import Grammar, GrammarKind
from loramux_server.engine.grammar import host as grammar_host
from loramux_server.engine.grammar import masks as grammar_masks
from loramux_server.engine.grammar.host import GrammarHost
from loramux_server.engine.grammar.masks import GrammarMasks
from loramux_server.engine.grammar.wire import Compile, Compiled, Forked, Mask, Open, Setup, decode_reply, frame
from loramux_server.engine.transport.protocol import Failure, Output
from loramux_server.engine.transport.wire import HEADER, decode, encode, frame_size
from loramux_server.text import TextTokenizer
from loramux_server.text.answers.response_format import ANY_OBJECT, MAX_BYTES, parse_format
from tests.examples import examples
from tests.unit.services.tiny_tokenizer import write_tokenizer

from .simulation import sequence

EOS = 2
BYTES = {char: byte for byte, char in bytes_to_unicode().items()}
SECONDS = 20.0
"""Longest wait for one mask: a grammar's own processor time is bounded far below, but the machine may be busy."""


def lark(text: str) -> Grammar:
    return Grammar(GrammarKind.LARK, text)


def regex(text: str) -> Grammar:
    return Grammar(GrammarKind.REGEX, text)


def schema(value: object) -> Grammar:
    return Grammar(GrammarKind.JSON_SCHEMA, json.dumps(value))


def spell(token: str) -> bytes:
    """What a token of a byte-level vocabulary stands for."""
    return bytes(BYTES[char] for char in token)


class Masks:
    """A host, and the replies that came for each key."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = Tokenizer.from_file(str(write_tokenizer(folder) / "tokenizer.json"))
        self.vocab = self.tokenizer.get_vocab_size()
        special = self.tokenizer.get_added_tokens_decoder()
        written = [self.tokenizer.id_to_token(t) or "" for t in range(self.vocab)]
        self.spelled = [b"" if t in special else spell(token) for t, token in enumerate(written)]
        """Bytes of each token; none of special ones."""
        self.mail: queue.SimpleQueue[Mask] = queue.SimpleQueue()
        self.host = GrammarHost(Setup(str(folder), (0, EOS), compile_seconds=0.5), self.mail.put)
        self.keys = itertools.count(1)
        self.early: dict[int, list[Mask]] = {}

    def next(self, key: int) -> Mask:
        while not self.early.get(key):
            mask = self.mail.get(timeout=SECONDS)
            self.early.setdefault(mask.key, []).append(mask)
        return self.early[key].pop(0)

    def open(self, grammar: Grammar) -> tuple[int, Mask]:
        key = next(self.keys)
        self.host.open(key, grammar)
        return key, self.next(key)

    def step(self, key: int, token: int) -> Mask:
        self.host.step(key, token)
        return self.next(key)

    def allowed(self, mask: Mask) -> list[int]:
        return [t for t in range(self.vocab) if mask.bits[t >> 3] >> (t & 7) & 1]

    def accepts(self, grammar: Grammar, text: str) -> bool:
        """Whether ``text`` is a whole answer in the grammar, fed as the longest tokens that are allowed.

        Not as the tokenizer cuts it: of text that is certain llguidance allows one way alone, which may be another.
        """
        key, mask = self.open(grammar)
        rest = text.encode()
        try:
            while rest:
                allowed = () if mask.complete else self.allowed(mask)
                fitting = [t for t in allowed if self.spelled[t] and rest.startswith(self.spelled[t])]
                if not fitting:
                    return False
                token = max(fitting, key=lambda t: len(self.spelled[t]))
                mask = self.step(key, token)
                rest = rest[len(self.spelled[token]) :]
            return mask.complete or EOS in self.allowed(mask)
        finally:
            self.host.close(key)

    def walk(self, grammar: Grammar, tokens: int = 60, seed: int = 0, choose: str = "") -> Mask:
        """The last reply to an answer of random tokens, or where they can be had of those that begin ``choose``."""
        draw = random.Random(seed)
        liked = [t for t in range(self.vocab) if choose and self.tokenizer.decode([t]).startswith(tuple(choose))]
        key, mask = self.open(grammar)
        for _ in range(tokens):
            if mask.code is not None or mask.complete:
                break
            found = [t for t in self.allowed(mask) if t not in (0, EOS)]
            if not found:
                break
            mask = self.step(key, draw.choice([t for t in liked if t in found] or found))
        self.host.close(key)
        return mask


@pytest.fixture(scope="module")
def masks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Masks]:
    masks = Masks(tmp_path_factory.mktemp("tokenizer"))
    yield masks
    masks.host.stop()


def test_masks_follow_the_grammar(masks: Masks) -> None:
    assert masks.accepts(regex("(yes|no)+"), "yesno")
    assert not masks.accepts(regex("(yes|no)+"), "yesn")
    assert masks.accepts(schema({"type": "object", "required": ["a"]}), '{"a": [1, {"b": null}]}')
    assert not masks.accepts(schema({"type": "object", "required": ["a"]}), '{"b": 1}')
    assert masks.accepts(ANY_OBJECT, '{"x":"é 🙂"}')
    assert not masks.accepts(ANY_OBJECT, "[1]")
    assert masks.accepts(lark('start: "(" start ")" | "x"'), "((x))")
    assert not masks.accepts(lark('start: "(" start ")" | "x"'), "((x)")


def test_a_digit_is_a_plain_one(masks: Masks) -> None:
    assert masks.accepts(regex(r"\d/\w"), "7/é")
    assert not masks.accepts(regex(r"\d"), "٣")


def test_blanks_come_to_an_end(masks: Masks) -> None:
    assert masks.accepts(ANY_OBJECT, '{\n    "a":\t1 }')
    assert not masks.accepts(ANY_OBJECT, "{" + " " * 40 + "}")
    assert not masks.accepts(ANY_OBJECT, "{\n\n}")
    free = {"type": "object", "x-guidance": {"whitespace_pattern": " *"}}
    assert masks.accepts(schema(free), "{" + " " * 40 + "}")


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12), min_size=1, max_size=5))
@example(["𥺬"])
@examples(25)
def test_any_text_may_be_a_choice(masks: Masks, choices: list[str]) -> None:
    grammar = parse_format({"type": "choice", "choice": choices})
    for choice in choices:
        assert masks.accepts(grammar, choice)
    longer = max(choices, key=len) + "x"
    assert not masks.accepts(grammar, longer)


def test_answers_in_one_grammar_are_apart(masks: Masks) -> None:
    grammar = regex("ab+c")
    (one, _), (two, first) = masks.open(grammar), masks.open(grammar)
    a = masks.tokenizer.token_to_id("a")
    masks.step(one, a)
    other, mask = masks.open(grammar)
    assert masks.allowed(mask) == masks.allowed(first)
    masks.host.close(one)
    assert masks.allowed(masks.step(two, a)) == masks.allowed(masks.step(other, a)) != masks.allowed(first)


def test_a_token_that_was_not_allowed_ends_the_answer(masks: Masks) -> None:
    key, _ = masks.open(regex("ab"))
    reply = masks.step(key, masks.tokenizer.token_to_id("c"))
    assert (reply.code, reply.complete) == (Code.RESOURCE_EXHAUSTED, False)
    assert masks.accepts(regex("ab"), "ab")


# What callers may send. Each entry once hung, crashed or filled the memory of the process that it ran in, or is near
# to one that did.
REFUSED = {
    "rules in a chain": lark("start: r0\n" + "".join(f"r{i}: r{i + 1}\n" for i in range(4500)) + 'r4500: "a"'),
    "terminals in a chain": lark("start: T0\n" + "".join(f"T{i}: T{i + 1}\n" for i in range(4500)) + 'T4500: "a"'),
    "terminals that double": lark(
        "start: T0\n" + "".join(f"T{i}: T{i + 1} T{i + 1}\n" for i in range(40)) + 'T40: "a"'
    ),
    "parentheses": lark("start: " + "(" * 30_000 + '"a"' + ")" * 30_000),
    "patterns that all hold": schema({"type": "string", "allOf": [{"pattern": f"a.{{0,{i}}}b"} for i in range(500)]}),
    "multiples of many": schema({"type": "integer", "allOf": [{"multipleOf": p} for p in (9973, 9967, 9949, 9941)]}),
    "a regex in parentheses": regex("(" * 30_000 + "a" + ")" * 30_000),
    "many optional parts": regex("a?" * 15_000 + "a" * 15_000),
    "a reference in a circle": schema(
        {"$ref": "#/$defs/a", "$defs": {"a": {"allOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/a"}]}}}
    ),
    "deep schema": Grammar(GrammarKind.JSON_SCHEMA, '{"items":' * 6000 + "{}" + "}" * 6000),
    "too many choices of objects": schema(
        {"allOf": [{"anyOf": [{"properties": {f"p{i}": {"const": j}}} for j in range(4)]} for i in range(30)]}
    ),
    "a file": schema({"$ref": "file:///etc/passwd"}),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_compiled_is_refused_in_time(masks: Masks, name: str) -> None:
    grammar = REFUSED[name]
    assert len(grammar.text) <= MAX_BYTES
    key, reply = masks.open(grammar)
    assert reply.code is Code.INVALID_ARGUMENT
    assert 0 < len(reply.error) < 1000
    masks.host.close(key)
    started = time.monotonic()
    _, again = masks.open(grammar)
    assert again.error == reply.error
    assert time.monotonic() - started < 0.5  # remembered: it costs nothing a second time


HOSTILE = {
    "nested quantifiers": (regex("((((((a{1,100}){1,100}){1,100}){1,100}){1,100}){1,100})"), "a"),
    "evil regex": (regex("(.*a.{0,200}){1,100}"), "a"),
    "a count of a thousand million": (regex("a{1000000000}"), "a"),
    "ambiguous": (lark('start: start start start "a" | start start | ""'), "a"),
    "rules that double": (
        lark("start: r0\n" + "".join(f"r{i}: r{i + 1} r{i + 1}\n" for i in range(40)) + 'r40: "a"'),
        "a",
    ),
    "nested repeats": (lark('start: (("a"{1000}){1000}){1000}'), "a"),
    "a trap behind a harmless start": (
        lark("start: T\nT: /x{30}/ U\nU: " + " & ".join(f"/.*a.{{{i}}}/" for i in range(1, 60))),
        "xa",
    ),
    "huge array": (schema({"type": "array", "minItems": 10**6, "items": {"type": "array", "minItems": 10**6}}), "[1"),
    "long string": (schema({"type": "string", "minLength": 10**6}), '"a'),
    "recursion": (
        schema({"$ref": "#/$defs/a", "$defs": {"a": {"type": "array", "items": {"$ref": "#/$defs/a"}}}}),
        "[",
    ),
    "a reference to itself": (schema({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}), ""),
    "impossible": (regex(r"[^\s\S]"), ""),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_grows_while_it_runs_ends_alone(masks: Masks, name: str) -> None:
    """It goes on within its time or ends with an error; the answer beside it is whole."""
    grammar, liked = HOSTILE[name]
    beside, mask = masks.open(regex("[ab]{5}c"))
    started = time.monotonic()
    reply = masks.walk(grammar, tokens=120, choose=liked)
    assert time.monotonic() - started < SECONDS
    assert reply.code in (None, Code.RESOURCE_EXHAUSTED, Code.INVALID_ARGUMENT)
    for letter in "ababac":
        token = masks.tokenizer.token_to_id(letter)
        assert token in masks.allowed(mask)
        mask = masks.step(beside, token)
    assert mask.complete


def test_some_of_these_do_run_into_their_bounds(masks: Masks) -> None:
    """The corpus above is not harmless: more than one of it needs the bounds."""
    ended = {name for name, (grammar, liked) in HOSTILE.items() if masks.walk(grammar, 120, choose=liked).code}
    assert {"nested quantifiers", "evil regex", "rules that double"} <= ended


def test_a_refusal_is_not_lost_to_what_is_under_way(tmp_path: Path) -> None:
    """The process leaves the closing to the host, which may be writing while the refusal comes."""
    write_tokenizer(tmp_path)
    control, theirs = socket.socketpair()
    with control, theirs:
        command = [sys.executable, "-m", grammar_host.MODULE, str(theirs.fileno())]
        parent = subprocess.Popen(command, pass_fds=[theirs.fileno()])
        control.sendall(frame(Setup(str(tmp_path), (0, EOS), compile_seconds=5.0)))
        ours, its = socket.socketpair()
        with ours:
            with its:
                socket.send_fds(control, [b"x"], [its.fileno()])
            ours.sendall(frame(Compile(regex("(a"))))
            ours.settimeout(SECONDS)
            with ours.makefile("rb") as stream:
                replies = [decode_reply(stream.read(frame_size(stream.read(HEADER.size)))) for _ in range(2)]
                assert replies[0] == Forked()
                assert isinstance(replies[1], Compiled)
                assert replies[1].error
                ours.settimeout(0.5)
                with pytest.raises(TimeoutError):
                    ours.recv(1)
                ours.sendall(frame(Open(1)))
                ours.shutdown(socket.SHUT_WR)
                ours.settimeout(SECONDS)
                assert ours.recv(1) == b""
        control.shutdown(socket.SHUT_RDWR)
        assert parent.wait(SECONDS) == 0


def test_a_grammar_crosses_the_socket() -> None:
    command = GenerateCommand("id", (1, 2), grammar=schema({"type": "object"}), tenant="default")
    assert decode(encode(command)[HEADER.size :]) == command
    failure = Failure.of(invalid_field("response_format", "is bad"))
    (output,) = decode(encode([Output("id", failure=failure)])[HEADER.size :])
    assert output.failure.error().violations == failure.error().violations != ()


def processes(masks: Masks) -> list[int]:
    """Process ids of the grammars that are in memory."""
    parent = masks.host.pid
    return [int(p) for p in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


def eventually(true: Callable[[], bool]) -> None:
    until = time.monotonic() + SECONDS
    while not true():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_so_many_grammars_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest wait their turn; idle ones make room."""
    monkeypatch.setattr(grammar_host, "MAX_PROCESSES", 2)
    masks = Masks(tmp_path)
    try:
        held = [masks.open(regex(f"a{i}"))[0] for i in range(2)]
        late = next(masks.keys)
        masks.host.open(late, regex("late"))
        given_up = next(masks.keys)
        masks.host.open(given_up, regex("given up"))
        masks.host.close(given_up)
        assert masks.step(held[0], masks.tokenizer.token_to_id("a")).code is None
        assert len(processes(masks)) == 2
        assert masks.mail.empty()
        masks.host.close(held[1])
        assert masks.next(late).bits
        eventually(lambda: len(processes(masks)) == 2)
        assert given_up not in masks.early
    finally:
        masks.host.stop()


def test_a_dead_process_fails_its_own_answers_and_comes_back(tmp_path: Path) -> None:
    masks = Masks(tmp_path)
    key, _ = masks.open(regex("ab"))
    (pid,) = processes(masks)
    other, _ = masks.open(regex("cd"))
    os.kill(pid, signal.SIGKILL)
    assert masks.next(key).code is Code.RESOURCE_EXHAUSTED
    assert masks.step(other, masks.tokenizer.token_to_id("c")).bits
    assert masks.accepts(regex("ab"), "ab")
    assert masks.host.pid is not None
    os.kill(masks.host.pid, signal.SIGKILL)
    os.waitid(os.P_PID, masks.host.pid, os.WEXITED | os.WNOWAIT)
    assert masks.step(other, masks.tokenizer.token_to_id("d")).complete  # those that are there stay
    assert masks.accepts(regex("ef"), "ef")
    left = processes(masks)
    masks.host.stop()
    eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in left))


@pytest.mark.parametrize("eos", [(), (EOS,), (450,)])
def test_field_05_a_shape_ends_whatever_end_tokens_there_are(eos: tuple[int, ...], tmp_path: Path) -> None:
    """None at all, one, or one beyond the tokenizer's vocabulary that the model has."""
    text = TextTokenizer.load(write_tokenizer(tmp_path))
    mail: queue.SimpleQueue[Mask] = queue.SimpleQueue()
    host = GrammarHost(Setup(str(tmp_path), eos), mail.put)
    try:
        host.open(1, regex("ab?"))
        mask = mail.get(timeout=SECONDS)
        (a,), (b,) = text.encode_continuation("a"), text.encode_continuation("b")
        assert mask.bits[a >> 3] >> (a & 7) & 1
        host.step(1, a)
        mask = mail.get(timeout=SECONDS)
        assert all(mask.bits[end >> 3] >> (end & 7) & 1 for end in eos)
        host.step(1, b)
        assert mail.get(timeout=SECONDS).complete
    finally:
        host.stop()


def test_field_06_text_that_the_tokenizer_would_change_is_spelt_byte_by_byte(tmp_path: Path) -> None:
    """A tokenizer that composes accents has no way to write them apart, and its grammar must still end."""
    write_tokenizer(tmp_path)
    state = json.loads((tmp_path / "tokenizer.json").read_text())
    state["normalizer"] = {"type": "NFC"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(state))
    masks_of = TextTokenizer.load(tmp_path)
    mail: queue.SimpleQueue[Mask] = queue.SimpleQueue()
    host = GrammarHost(Setup(str(tmp_path), (EOS,)), mail.put)
    said = b""
    try:
        host.open(1, parse_format({"type": "choice", "choice": ["cafe\u0301<|im_end|>"]}))
        while not (mask := mail.get(timeout=SECONDS)).complete:
            assert mask.code is None
            token = next(t for t in range(masks_of.vocab_size) if mask.bits[t >> 3] >> (t & 7) & 1)
            said += masks_of.token_bytes(token)
            host.step(1, token)
    finally:
        host.stop()
    assert said.decode() == "cafe\u0301<|im_end|>"


def test_a_tokenizer_that_cannot_be_used_is_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    mail: queue.SimpleQueue[Mask] = queue.SimpleQueue()
    host = GrammarHost(Setup(str(tmp_path), (2,)), mail.put)
    host.open(1, ANY_OBJECT)
    reply = mail.get(timeout=SECONDS)
    host.stop()
    assert reply.code is Code.FAILED_PRECONDITION
    assert "tokenizer" in capfd.readouterr().err


def test_a_step_waits_for_masks_once_however_long_its_drafts_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grammar_masks, "GRACE_SECONDS", 0.05)
    write_tokenizer(tmp_path)
    masks = GrammarMasks(tmp_path, (0, EOS), lambda: None)
    seq = sequence("late", [5, 6, 7], 8)
    seq.grammar = regex("a+")
    try:
        masks.open(seq)  # its process takes longer to start
        since = time.monotonic()
        for _ in range(16):
            masks.wait([seq], since)
        assert time.monotonic() - since < 0.4
    finally:
        masks.close(seq.id)
        masks.stop()
