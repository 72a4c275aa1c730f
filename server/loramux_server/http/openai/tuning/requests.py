"""The fields of a request for a fine-tuning job by type; their values are checked by the services."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, StrictBool, StrictInt, StrictStr

from ...bodies.fields import Number, Strict

Auto = Literal["auto"]


class Hyperparameters(Strict):
    """What is ``auto`` or left out is the server's to choose."""

    n_epochs: Auto | Number | None = None
    batch_size: Auto | StrictInt | None = None
    learning_rate_multiplier: Auto | Number | None = None


class DpoHyperparameters(Hyperparameters):
    """Those of DPO."""

    beta: Auto | Number | None = None


class Supervised(Strict):
    """Settings of supervised fine-tuning."""

    hyperparameters: Hyperparameters | None = None


class Dpo(Strict):
    """Settings of DPO."""

    hyperparameters: DpoHyperparameters | None = None


class Method(Strict):
    """How to train."""

    type: Literal["supervised", "dpo", "reinforcement"]
    supervised: Supervised | None = None
    dpo: Dpo | None = None
    reinforcement: Any = None


class MinAccuracy(Strict):
    """A gate that counts right answers."""

    min_accuracy: Number
    match: Literal["contained", "exact"] = "contained"


class Loramux(Strict):
    """The server's own settings, named as ``client.train`` names them."""

    name: StrictStr | None = None
    init_from: StrictStr | None = None
    on_top_of: Any = None
    gate: Literal["none", "improves"] | MinAccuracy | None = None
    compare_prompt: StrictStr | None = None
    compare_documents: StrictStr | None = None
    """The id of a file of documents."""
    compare_top_k: StrictInt | None = None
    recipe: StrictStr | None = None
    replay: StrictStr | None = None
    """``default``, or the id of a file."""
    rank: StrictInt | None = None
    alpha: Number | None = None
    rslora: StrictBool | None = None
    dropout: Number | None = None
    target_modules: StrictStr | list[StrictStr] | None = None
    layers: list[StrictInt] | None = None
    learning_rate: Auto | Number | None = None
    lr_scheduler: StrictStr | None = None
    warmup_ratio: Number | None = None
    warmup_steps: StrictInt | None = None
    beta1: Number | None = None
    beta2: Number | None = None
    weight_decay: Number | None = None
    max_grad_norm: Number | None = None
    epochs: Number | None = None
    max_steps: StrictInt | None = None
    batch_size: StrictInt | None = None
    max_length: StrictInt | None = None
    seed: StrictInt | None = None
    validation_split: Number | None = None
    eval_steps: StrictInt | None = None
    early_stopping_patience: StrictInt | None = None
    method: Literal["auto", "sft", "dpo", "distill"] | None = None
    context: StrictStr | None = None
    on_policy: StrictBool | None = None
    beta: Number | None = None
    replay_rows: StrictInt | None = None
    chat_template_kwargs: dict[StrictStr, Any] | None = None


class CreateUpload(Strict):
    """``POST /v1/uploads``."""

    bytes: StrictInt
    filename: StrictStr
    mime_type: StrictStr
    """Ignored: rows are JSON lines."""
    purpose: StrictStr
    expires_after: Any = None


class CompleteUpload(Strict):
    """``POST /v1/uploads/{id}/complete``."""

    part_ids: list[StrictStr] = Field(min_length=1)
    md5: StrictStr | None = None


class CreateJob(Strict):
    """``POST /v1/fine_tuning/jobs``."""

    model: StrictStr
    training_file: StrictStr
    validation_file: StrictStr | None = None
    method: Method | None = None
    hyperparameters: Hyperparameters | None = None
    """The older form of ``method.supervised.hyperparameters``."""
    suffix: StrictStr | None = None
    seed: StrictInt | None = None
    metadata: dict[StrictStr, StrictStr] | None = None
    integrations: list[Any] | None = None
    loramux: Loramux | None = None
