"""Grammars of callers, each in a process of its own: ``python -m loramux_server.engine.grammar.process FD``.

A schema of a hundred bytes can keep the compiler busy for minutes, fill memory or overflow the stack, and so can a
grammar that compiled well when a certain text comes up. None of it can be foreseen, and no thread can be stopped. So
one process reads the tokenizer once, and for every grammar a fork of it compiles, masks and, if it must, dies: by a
timer on its own processor time, or by its memory limit. Started by ``engine.grammars``; not for people.
"""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core.errors import Code, Error
from ...core.types import Grammar, GrammarKind
from ...host.signals import leave_to_the_front
from .tokenizer import grammar_tokenizer
from .wire import Close, Compile, Compiled, Forked, Mask, Open, Reply, Setup, Step, frame, read_request

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLParserLimits, LLTokenizer

STEP_SECONDS = 0.5
"""Processor time that one token may take."""
ANSWER_SECONDS, TOKEN_SECONDS = 1.0, 0.02
"""An answer may take the one, and the other for each of its tokens."""
MAX_ITEMS, MAX_STATES = 20_000, 50_000
"""Most items of the parser in one step, and states of the lexer."""
MESSAGE_CHARS = 600
"""Most of llguidance's own words that a caller gets: they may quote the whole grammar."""
BAD_TOKENIZER = 3
"""Exit status when the tokenizer cannot be used."""

# A blank or two, or a new line and its indentation: a small model that likes blanks would never come to the point.
_JSON: Any = {"whitespace_pattern": r"[ \t]{1,2}|\r?\n[ \t]{0,24}"}


def main(fd: int) -> int:
    """Read the tokenizer, then fork for every socket that comes in, until the engine is gone."""
    leave_to_the_front()
    control = socket.socket(fileno=fd)
    with control.makefile("rb", buffering=0) as stream:
        setup = read_request(stream)
    if not isinstance(setup, Setup):
        return 2
    try:
        tokenizer = grammar_tokenizer(Path(setup.tokenizer), setup.eos)
    except (Error, OSError, ValueError) as error:
        print(f"grammars: the tokenizer cannot be used: {error}", file=sys.stderr)
        return BAD_TOKENIZER
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the forks
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    gc.freeze()
    while True:
        _, fds, _, _ = socket.recv_fds(control, 1, 1)
        if not fds:
            return 0
        if os.fork() == 0:
            control.close()
            with contextlib.suppress(OSError):  # the engine is gone
                _serve(socket.socket(fileno=fds[0]), tokenizer, setup)
            os._exit(0)
        os.close(fds[0])


def _serve(connection: socket.socket, tokenizer: LLTokenizer, setup: Setup) -> None:
    """The life of one grammar: compile it, then answer for each text that is written in it."""
    from llguidance import LLMatcher

    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()  # noqa: SIM115
    resource.setrlimit(resource.RLIMIT_AS, (used + setup.memory,) * 2)

    def reply(message: Reply) -> None:
        connection.sendall(frame(message))

    def refuse(error: str) -> None:
        # The host closes. If this end did, a message under way to it would cost the host this reply.
        reply(Compiled(error))
        signal.setitimer(signal.ITIMER_PROF, 0)
        while stream.read(1 << 16):
            pass

    reply(Forked())
    with connection.makefile("rb") as stream:
        request = read_request(stream)
        if not isinstance(request, Compile):
            return
        with _bounded(setup.compile_seconds):
            try:
                text = _source(request.grammar)
            except ValueError as error:
                refuse(str(error))
                return
            first = LLMatcher(tokenizer, text, log_level=0, limits=_limits())
            if not first.is_error():
                first.deep_copy().compute_bitmask()  # much of the work is only done for the first mask
        if first.is_error():
            refuse(_words(first))
            return
        reply(Compiled())
        answers: dict[int, _Answer] = {}
        while (request := read_request(stream)) is not None:
            with _bounded(STEP_SECONDS):
                match request:
                    case Open(key):
                        answers[key] = _Answer(key, first.deep_copy())
                        reply(answers[key].mask())
                    case Step(key, token):
                        reply(answers[key].step(token))
                    case Close(key):
                        answers.pop(key, None)


class _Answer:
    """One text in the grammar."""

    def __init__(self, key: int, matcher: LLMatcher) -> None:
        self._key, self._matcher = key, matcher
        self._seconds, self._allowed = 0.0, ANSWER_SECONDS

    def step(self, token: int) -> Mask:
        self._allowed += TOKEN_SECONDS
        return self._timed(lambda: self._matcher.consume_token(token))

    def mask(self) -> Mask:
        return self._timed(lambda: None)

    def _timed(self, move: Callable[[], object]) -> Mask:
        started, matcher = time.process_time(), self._matcher
        move()
        bits = b""
        if not matcher.is_stopped():
            bits = matcher.compute_bitmask()
        self._seconds += time.process_time() - started
        if matcher.is_error():
            return self._failed(f"the grammar is too complex for this answer: {_words(matcher)}")
        if matcher.is_stopped():
            return Mask(self._key, complete=True)
        if not any(bits):
            return self._failed("the grammar leaves no token to go on with")
        if self._seconds > self._allowed:
            return self._failed("the grammar takes too much time for this answer; simplify it")
        return Mask(self._key, bits)

    def _failed(self, error: str) -> Mask:
        return Mask(self._key, code=Code.RESOURCE_EXHAUSTED, error=error)


def _words(matcher: LLMatcher) -> str:
    """What is wrong with a matcher; empty: nothing."""
    error = matcher.get_error().replace("<non-verbose/>", "").strip()
    return error if len(error) <= MESSAGE_CHARS else error[:MESSAGE_CHARS] + " ..."


def _source(grammar: Grammar) -> str:
    """The grammar in llguidance's own notation. ValueError: not JSON."""
    from llguidance import LLMatcher, regex_to_lark

    match grammar.kind:
        case GrammarKind.JSON_SCHEMA:
            return LLMatcher.grammar_from_json_schema(grammar.text, defaults=_JSON)
        case GrammarKind.REGEX:
            # \d is 0 to 9 and not the digits of every script, which hardly anyone means who writes it.
            return LLMatcher.grammar_from_lark(f"start: /{regex_to_lark(grammar.text, 'd')}/")
        case GrammarKind.LARK:
            return LLMatcher.grammar_from_lark(grammar.text)


def _limits() -> LLParserLimits:
    """Tighter than llguidance's own where a row of an answer would wait for them."""
    from llguidance import LLParserLimits

    return LLParserLimits(step_max_items=MAX_ITEMS, max_lexer_states=MAX_STATES, verbose_errors=False)


@contextlib.contextmanager
def _bounded(seconds: float) -> Iterator[None]:
    """The process ends if the block takes more processor time than this."""
    signal.setitimer(signal.ITIMER_PROF, seconds)
    yield
    signal.setitimer(signal.ITIMER_PROF, 0)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
