"""``loramux train``."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from ..._wire.messages.train_requests import TrainOptions
from ...types import AdapterVersion, JobInfo
from ..adapters.promotion import meaning
from ..common import (
    Json,
    TemplateArg,
    connect,
    how_to_ask,
    numbers,
    pairs,
    print_json,
    print_notes,
    print_result,
    settings_of,
    stack,
    template_args,
    text_file,
)
from ..completion import complete_adapter, complete_recipe
from ..tables import print_evaluation
from .convert import AsOption

BatchSize = Annotated[int | None, typer.Option(help="Rows per optimiser step.", show_default="8")]
Epochs = Annotated[float | None, typer.Option(help="Passes over the data.", show_default="3")]
MaxSteps = Annotated[
    int | None, typer.Option(help="Optimiser steps; overrides --epochs, going through the rows as often as it takes.")
]
MaxLength = Annotated[
    int | None, typer.Option(help="Longest row in tokens; longer ones are refused.", show_default="the model's context")
]


Layers = Annotated[
    str | None, typer.Option(help="Decoder layers to adapt, such as '15-29' or '0,2,4'.", show_default="all")
]
Recipe = Annotated[
    str | None,
    typer.Option(
        help="Settings for what is left out: facts, or style (over --on-top-of donors).", autocompletion=complete_recipe
    ),
]
ContextArg = Annotated[
    str | None,
    typer.Option(
        "--context",
        metavar="TEXT|@FILE",
        help="distill: instructions or facts that the teacher reads before each row, and the adapter does not.",
    ),
]
OnPolicy = Annotated[
    bool,
    typer.Option("--on-policy", help="distill: the adapter answers the rows while it trains, the teacher corrects it."),
]
Rank = Annotated[int | None, typer.Option(help="Rank of the adapter.", show_default="16")]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(train)


def train(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="Adapter; the result becomes its next version.")],
    data: Annotated[
        Path,
        typer.Option(help="File of rows (.jsonl, .json, .csv, .tsv, .parquet): answers to learn, or preference pairs."),
    ],
    validation: Annotated[Path | None, typer.Option(help="File of held-out rows.")] = None,
    as_: AsOption = None,
    replay: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|default",
            help="General rows, some of which are mixed in so that the base's other answers stay; default are the"
            " server's own. The recipe facts takes those.",
        ),
    ] = None,
    replay_rows: Annotated[
        int | None, typer.Option(help="Rows to mix in from --replay; 0 for none.", show_default="32")
    ] = None,
    on_top_of: Annotated[
        list[str] | None,
        typer.Option(
            metavar="STACK",
            help="Frozen stack underneath, such as 'pine:1.3,summit' ('' is the bare base); repeat it and rows take"
            " turns over the stacks.",
        ),
    ] = None,
    rank: Rank = None,
    alpha: Annotated[float | None, typer.Option(help="LoRA alpha.", show_default="32")] = None,
    learning_rate: Annotated[
        str | None, typer.Option(metavar="RATE", help="Peak learning rate.", show_default="auto: for the base's size")
    ] = None,
    epochs: Epochs = None,
    max_steps: MaxSteps = None,
    batch_size: BatchSize = None,
    max_length: MaxLength = None,
    target_modules: Annotated[
        str | None, typer.Option(help="Linears to adapt, such as 'q_proj,v_proj'.", show_default="all-linear")
    ] = None,
    layers: Layers = None,
    rslora: Annotated[bool, typer.Option("--rslora", help="Scale by alpha / sqrt(rank).")] = False,
    dropout: Annotated[float | None, typer.Option(help="Dropout before the adapter.", show_default="0")] = None,
    lr_scheduler: Annotated[str | None, typer.Option(help="linear, cosine or constant.", show_default="linear")] = None,
    warmup_ratio: Annotated[
        float | None, typer.Option(help="Share of steps with a rising rate.", show_default="0.06")
    ] = None,
    warmup_steps: Annotated[
        int | None, typer.Option(help="Steps with a rising rate.", show_default="as --warmup-ratio says")
    ] = None,
    beta1: Annotated[float | None, typer.Option(help="AdamW's first decay.", show_default="0.9")] = None,
    beta2: Annotated[float | None, typer.Option(help="AdamW's second decay.", show_default="0.99")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="AdamW's weight decay.", show_default="0")] = None,
    max_grad_norm: Annotated[float | None, typer.Option(help="Gradient clipping.", show_default="1")] = None,
    method: Annotated[
        Literal["auto", "sft", "dpo", "distill"] | None,
        typer.Option(
            help="Learn answers, prefer them, or learn to answer without --context as the base does with it.",
            show_default="auto: by the rows, and distill with --context",
        ),
    ] = None,
    context: ContextArg = None,
    on_policy: OnPolicy = False,
    beta: Annotated[
        float | None, typer.Option(help="DPO: how strongly to stay near the reference model.", show_default="0.1")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of weights, order and dropout.", show_default="0")] = None,
    init_from: Annotated[
        str | None, typer.Option(help="Version to start from, such as acme@2.", autocompletion=complete_adapter)
    ] = None,
    validation_split: Annotated[
        float | None, typer.Option(help="Share of the rows to hold out, where --validation is not given.")
    ] = None,
    eval_steps: Annotated[
        int | None, typer.Option(help="Steps between two evaluations; the best state is published.")
    ] = None,
    early_stopping_patience: Annotated[
        int | None, typer.Option(help="Stop after this many evaluations that are no better.")
    ] = None,
    recipe: Recipe = None,
    gate: Annotated[
        str | None,
        typer.Option(
            help="Condition for the name to move to the result: none, improves, min_accuracy:0.9 (answers are right) or"
            " min_accuracy:0.9:exact (answers are the expected text and nothing else).",
            show_default="improves where there are held-out rows that are no training rows, else none",
        ),
    ] = None,
    compare_prompt: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT|@FILE",
            help="System prompt to compare with: held-out rows are also asked of the base, alone and with this prompt.",
        ),
    ] = None,
    compare_documents: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE|FOLDER",
            help="Documents to compare with (text, Markdown, JSON lines): held-out rows are also asked of base and"
            " adapter with passages that BM25 finds in them.",
        ),
    ] = None,
    compare_top_k: Annotated[
        int | None, typer.Option(help="Passages of --compare-documents before a row.", show_default="3")
    ] = None,
    chat_template_kwargs: TemplateArg = None,
    metadata: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Note to keep with the version; may be repeated.")
    ] = None,
    idempotency_key: Annotated[str | None, typer.Option(help="The same key gives the same job.")] = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Show the training and wait for its end.")] = True,
    json: Json = False,
) -> None:
    """Train an adapter while the server serves, and publish it.

    It trains on the resident base. The very next request can use it. Interrupting this command leaves the job running.

    \b
    Examples:
      loramux train acme --data acme.jsonl
      loramux train acme --data acme.jsonl --recipe facts \\
        --validation-split 0.1 --compare-prompt @acme-prompt.txt \\
        --compare-documents handbook/
      loramux train brief --data questions.jsonl --context @page.txt
      loramux train letter --data letter.jsonl --recipe style \\
        --on-top-of pine:1.3 --on-top-of summit --on-top-of ''
    """  # noqa: D301
    settings = settings_of(ctx, TrainOptions) | {
        "learning_rate": rate(learning_rate),
        "target_modules": split(target_modules) if target_modules else None,
        "rslora": rslora or None,
        "on_policy": on_policy or None,
        "chat_template_kwargs": template_args(chat_template_kwargs),
        "context": text_or_file(context, "--context"),
    }
    with connect(ctx) as client:
        job = client.train(
            name,
            data,
            validation=validation,
            replay=replay,
            on_top_of=[stack(split(text)) for text in on_top_of or ()] or None,
            init_from=init_from,
            gate=condition(gate),
            compare_prompt=text_or_file(compare_prompt, "--compare-prompt"),
            compare_documents=compare_documents,
            compare_top_k=compare_top_k,
            recipe=recipe,
            as_=as_,
            metadata=pairs(metadata or ()),
            idempotency_key=idempotency_key,
            **settings,
        )
        print_notes(job.info.notes, sys.stderr)
        if not wait:
            follow = f"job {job.id} is {job.info.state}; follow it with: loramux jobs watch {job.id}"
            print_result(job.info, follow, json)
            return
        try:
            version = job.wait(progress=True)
        except KeyboardInterrupt:
            print(f"\njob {job.id} goes on; loramux jobs watch {job.id} | cancel {job.id}", file=sys.stderr)
            raise typer.Exit(130) from None
    if json:
        print_json(version)
    else:
        print_evaluation(job.info)
        print(published(version, job.info))


def published(version: AdapterVersion, job: JobInfo) -> str:
    """What became of a version that was just published, and of the name: the last line of a job."""
    before = job.replaced if job.replaced != version.ref else ""
    if job.gate_result:
        still = (
            f"{version.name} still means @{before.rpartition('@')[2]}" if before else f"{version.name} means nothing"
        )
        return (
            f"kept {version.ref} as a candidate, because {job.gate_result}\n"
            f"{still}; try the candidate with: {how_to_ask(version.ref, version.asked_with)}; "
            f"promote it with: loramux adapters promote {version.name} {version.version}"
        )
    metrics = f" ({numbers(version.metrics)})" if version.metrics else ""
    return (
        f"published {version.ref}{metrics}; use it with: {how_to_ask(version.name, version.asked_with)}\n"
        f"{meaning(version.name, version.version, int(before.rpartition('@')[2] or 0))}"
    )


def text_or_file(text: str | None, option: str) -> str | None:
    """A text as it is given, or with ``@`` in front what a file holds."""
    if text is None or not text.startswith("@"):
        return text
    return text_file(Path(text[1:]), option)


def rate(text: str | None) -> float | Literal["auto"] | None:
    """A learning rate, ``auto`` or nothing."""
    if text is None or text == "auto":
        return text  # type: ignore[return-value]
    try:
        return float(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no number; give one, or auto", param_hint="--learning-rate") from None


def condition(text: str | None) -> str | dict[str, float | str] | None:
    """A gate from ``improves``, ``min_accuracy:0.9`` or ``min_accuracy:0.9:exact``."""
    kind, colon, rest = (text or "").partition(":")
    if kind != "min_accuracy":
        return text
    least, _, match = rest.partition(":")
    try:
        return {kind: float(least) if colon else math.nan, "match": match or "contained"}
    except ValueError:
        raise typer.BadParameter(f"{least!r} is no share, such as 0.9", param_hint="--gate") from None


def split(text: str) -> list[str]:
    """The parts between commas, none of them empty."""
    return [part.strip() for part in text.split(",") if part.strip()]
