"""``loramux generate``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from .._wire.messages.requests import GenerateOptions
from ..errors import invalid
from ..types import Completion
from .common import (
    AdapterOption,
    Json,
    TemplateArg,
    Tools,
    asked_otherwise,
    connect,
    json_list,
    print_json,
    print_notes,
    read_stdin,
    settings_of,
    stack,
    template_args,
    text_file,
    write,
)

MaxTokens = Annotated[int | None, typer.Option(help="Most new tokens.", show_default="the server's, 128")]
Temperature = Annotated[float | None, typer.Option(help="Randomness; 0 is greedy.", show_default="0")]
TopP = Annotated[float | None, typer.Option(help="Sample from the most likely tokens up to this probability.")]
TopK = Annotated[int | None, typer.Option(help="Sample from this many most likely tokens; 0: off.")]
MinP = Annotated[float | None, typer.Option(help="Drop tokens below this share of the most likely one; 0: off.")]
RepetitionPenalty = Annotated[float | None, typer.Option(help="Above 1: less repetition.")]
Seed = Annotated[int | None, typer.Option(help="Makes sampling reproducible.")]
JsonSchema = Annotated[
    Path | None,
    typer.Option(help="File with a JSON schema that the answer must fit.", exists=True, dir_okay=False, metavar="FILE"),
]
Regex = Annotated[str | None, typer.Option(help="Regular expression that the whole answer must match.")]
ChoiceOption = Annotated[
    list[str] | None, typer.Option("--choice", help="Text that the answer may be; repeat it for each.")
]
Stop = Annotated[list[str] | None, typer.Option(help="Text that ends the answer; may be repeated.")]
StopTokenId = Annotated[
    list[int] | None, typer.Option("--stop-token-id", help="Token id that ends the answer; may be repeated.", min=0)
]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(generate)


def generate(
    context: typer.Context,
    prompt: Annotated[
        str | None,
        typer.Argument(
            help="Text to go on from, or with --message to answer; '-': stdin without its last newline. Left out with"
            " --messages.",
            show_default=False,
            metavar="PROMPT",
        ),
    ] = None,
    adapter: AdapterOption = None,
    message: Annotated[
        bool, typer.Option("--message", "-m", help="PROMPT is a chat message: put it through the chat template.")
    ] = False,
    system: Annotated[str | None, typer.Option(help="System message; implies --message.")] = None,
    prefill: Annotated[
        str | None,
        typer.Option(help="Beginning of the answer, to go on from (continue_final_message); implies --message."),
    ] = None,
    messages: Annotated[
        Path | None,
        typer.Option(
            help="JSON file with the messages of a chat, in place of PROMPT.",
            exists=True,
            dir_okay=False,
            metavar="FILE",
        ),
    ] = None,
    tools: Tools = None,
    tool_choice: Annotated[
        str | None,
        typer.Option(help="auto, none, required, or the name of the tool that must be called.", show_default="auto"),
    ] = None,
    template_arg: TemplateArg = None,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    min_p: MinP = None,
    repetition_penalty: RepetitionPenalty = None,
    presence_penalty: Annotated[float | None, typer.Option(help="Subtracted from tokens that were used.")] = None,
    frequency_penalty: Annotated[float | None, typer.Option(help="Subtracted for each use of a token.")] = None,
    seed: Seed = None,
    stop: Stop = None,
    stop_token_id: StopTokenId = None,
    json_schema: JsonSchema = None,
    regex: Regex = None,
    choice: ChoiceOption = None,
    n: Annotated[int | None, typer.Option("-n", help="Number of answers.", show_default="1")] = None,
    logprobs: Annotated[int | None, typer.Option(help="With --json: this many best tokens at each place.")] = None,
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="Go on after the model's end token.")] = False,
    stats: Annotated[bool, typer.Option("--stats", help="Print token counts and the versions used on stderr.")] = False,
    timeout: Annotated[float | None, typer.Option(help="Seconds after which to give up.")] = None,
    json: Json = False,
) -> None:
    """Answer a prompt with a stack of adapters, as the text is made.

    \b
    Examples:
      loramux generate "The capital of France is"
      loramux generate -m "When does Acme open?" --adapter acme
      loramux generate -m "When does Acme open?" -a acme -a formal:0.5
      loramux generate -m "Is the sky blue?" --choice yes --choice no
      loramux generate - --system "Summarise this." --json < letter.txt
      loramux generate --messages chat.json --tools tools.json
      loramux generate -m "Rome?" --tools tools.json --tool-choice required
      loramux generate -m "Is the sky blue?" --template-arg enable_thinking=false
    """  # noqa: D301
    shown, given_args = json_list(tools, "--tools"), template_args(template_arg)
    turns = json_list(messages, "--messages")
    if (prompt is None) == (turns is None):
        raise typer.BadParameter("give one of PROMPT and --messages", param_hint="PROMPT")
    text = read_stdin() if prompt == "-" else prompt
    if turns is not None or message or any(each is not None for each in (system, prefill, shown, given_args)):
        turns = turns if turns is not None else [{"role": "user", "content": text}]
        turns = [{"role": "system", "content": system}, *turns] if system is not None else turns
        turns += [{"role": "assistant", "content": prefill}] if prefill is not None else []
    if logprobs is not None and not json:
        raise invalid("logprobs", "is shown in JSON only; add --json")
    options = settings_of(context, GenerateOptions) | {
        "stop": stop or None,
        "stop_token_ids": stop_token_id or None,
        "ignore_eos": ignore_eos or None,
        "continue_final_message": prefill is not None or None,
        "tools": shown,
        "tool_choice": _tool_choice(tool_choice),
        "chat_template_kwargs": given_args,
        "response_format": _format(json_schema, regex, choice),
    }
    given = {"messages": turns} if turns is not None else {"prompt": text}
    with connect(context) as client:
        if json or (n or 1) > 1:
            completion = client.generate(**given, adapters=stack(adapter), timeout=timeout, **options)
            _show(completion, json)
        else:
            with client.stream(**given, adapters=stack(adapter), timeout=timeout, **options) as stream:
                for chunk in stream:
                    write(chunk.text)
                completion = stream.completion
            write("" if completion.text.endswith("\n") else "\n")
        print_notes(asked_otherwise(client, completion.adapters, chat=turns is not None), sys.stderr)
    if stats:
        usage, applied = completion.usage, ", ".join(f"{a.ref} x {a.weight:g}" for a in completion.adapters) or "base"
        print(
            f"[{usage.prompt_tokens} prompt + {usage.completion_tokens} new tokens, {usage.cached_tokens} from cache;"
            f" {applied}; ended by {completion.finish_reason}]",
            file=sys.stderr,
        )


def _format(json_schema: Path | None, regex: str | None, choice: list[str] | None) -> dict[str, Any] | None:
    """The shape that was asked for, if any."""
    given: dict[str, Any] = {}
    if json_schema is not None:
        given["json_schema"] = text_file(json_schema, "--json-schema")
    if regex is not None:
        given["regex"] = regex
    if choice:
        given["choice"] = choice
    if len(given) > 1:
        raise invalid("response_format", "can be one of --json-schema, --regex and --choice")
    return given or None


def _tool_choice(given: str | None) -> str | dict[str, Any] | None:
    """What is no mode is the name of a tool."""
    if given is None or given in ("auto", "none", "required"):
        return given
    return {"type": "function", "function": {"name": given}}


def _show(completion: Completion, json: bool) -> None:
    if json:
        print_json(completion)
        return
    for choice in completion.choices:
        write(f"--- {choice.index}\n{choice.text}\n")
