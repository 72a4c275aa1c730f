"""``loramux chat``: a conversation in the terminal."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from .._wire.messages.requests import GenerateOptions
from ..client import Client
from ..errors import LoramuxError, invalid
from .common import (
    AdapterOption,
    TemplateArg,
    Tools,
    asked_otherwise,
    connect,
    error_lines,
    json_list,
    print_notes,
    settings_of,
    stack,
    template_args,
    write,
)
from .generate import MaxTokens, MinP, RepetitionPenalty, Seed, Temperature, TopK, TopP

HELP = """\
/adapters                 the stack in use, and the adapters that the server has
/adapters acme formal:0.5 use this stack from now on (/adapters none: the base)
/system TEXT              set the system message (without TEXT: remove it)
/reset                    forget the conversation
/exit                     leave (or end of input)
Ctrl-C stops an answer."""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(chat)


def chat(
    context: typer.Context,
    adapter: AdapterOption = None,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    max_tokens: MaxTokens = 512,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    min_p: MinP = None,
    repetition_penalty: RepetitionPenalty = None,
    seed: Seed = None,
    tools: Tools = None,
    chat_template_kwargs: TemplateArg = None,
) -> None:
    """Chat with a stack of adapters that can change meanwhile.

    \b
    Examples:
      loramux chat --adapter acme
      loramux chat --system "Answer in one sentence." --temperature 0.7
      ... then /adapters acme formal:0.5 to change the stack, /help for the rest

    Where input is no terminal, the exit code is 1 if any line of it failed.
    """  # noqa: D301
    if sys.stdin.isatty():
        import readline  # noqa: F401  # gives input() editing and history

        print("/help for commands, Ctrl-D to leave")
    with connect(context) as client:
        options = settings_of(context, GenerateOptions) | {
            "tools": json_list(tools, "--tools"),
            "chat_template_kwargs": template_args(chat_template_kwargs),
        }
        conversation = Conversation(client, stack(adapter), system, options)
        conversation.check(conversation.adapters)
        conversation.run(_ask)
    if conversation.failed and not sys.stdin.isatty():
        raise typer.Exit(1)


def _ask() -> str:
    return input("> " if sys.stdin.isatty() else "")


class Conversation:
    """The turns so far, the stack, and the commands that change them."""

    def __init__(
        self, client: Client, adapters: list[tuple[str, float]], system: str | None, options: dict[str, Any]
    ) -> None:
        self.client = client
        self.adapters = adapters
        self.system = system
        self.options = options
        self.turns: list[dict[str, str]] = []
        self._noted: set[str] = set()
        """Adapters that were looked at for how they are asked: it is told once."""
        self.failed = False
        """Whether a message or a command could not be done."""
        self._commands: dict[str, Callable[[str], None]] = {
            "/adapters": self._set_adapters,
            "/system": self._set_system,
            "/reset": self._reset,
            "/help": lambda _: print(HELP),
        }

    def run(self, ask: Callable[[], str]) -> None:
        """Take lines from ``ask`` until it raises EOFError or the user leaves."""
        while True:
            try:
                line = ask().removeprefix("\ufeff").strip()
            except EOFError:
                return
            except KeyboardInterrupt:
                print()
                continue
            if line in ("/exit", "/quit"):
                return
            if line:
                self.take(line)

    def take(self, line: str) -> None:
        """A message or a command. Errors are shown; the conversation goes on."""
        word, *more = line.split(None, 1)
        rest = "".join(more)
        try:
            if not line.startswith("/"):
                self._answer(line)
            elif word in self._commands:
                self._commands[word](rest.strip())
            else:
                raise invalid(word, "is no command; /help lists them")
        except LoramuxError as error:
            self.failed = True
            print("error: " + "\n  ".join(error_lines(error)), file=sys.stderr)

    def _answer(self, text: str) -> None:
        turns = [*self.turns, {"role": "user", "content": text}]
        opening = [{"role": "system", "content": self.system}] if self.system else []
        with self.client.stream(messages=opening + turns, adapters=self.adapters, **self.options) as stream:
            try:
                for chunk in stream:
                    write(chunk.text)
            except KeyboardInterrupt:
                write(" [stopped]")
            completion = stream.completion
        write("\n")
        new = [applied for applied in completion.adapters if applied.ref not in self._noted]
        self._noted.update(applied.ref for applied in new)
        print_notes(asked_otherwise(self.client, new, chat=True), sys.stderr)
        # Only a turn that was answered becomes part of the conversation.
        self.turns = [*turns, {"role": "assistant", "content": completion.text}]

    def _set_adapters(self, text: str) -> None:
        if text:
            wanted = [] if text == "none" else stack(text.replace(",", " ").split())
            self.check(wanted)
            self.adapters = wanted
        else:
            print("the server has: " + (", ".join(a.name for a in self.client.adapters.list()) or "no adapters"))
        print("in use: " + (", ".join(f"{name}:{weight:g}" for name, weight in self.adapters) or "the base alone"))

    def check(self, adapters: list[tuple[str, float]]) -> None:
        """Raises for a stack that no message could use: with a name twice, or one that the server does not have."""
        names = [name for name, _ in adapters]
        for name, weight in adapters:
            if not math.isfinite(weight):
                raise invalid("adapters", f"the weight of {name} must be a finite number")
            if names.count(name) > 1:
                raise invalid("adapters", f"names {name} twice")
            if self.client.adapters.get(name).current is None and "@" not in name:
                raise invalid("adapters", f"{name} has no version that can be used")

    def _set_system(self, text: str) -> None:
        self.system = text or None
        print("system message set" if text else "no system message")

    def _reset(self, _: str) -> None:
        self.turns = []
        print("the conversation is forgotten")
