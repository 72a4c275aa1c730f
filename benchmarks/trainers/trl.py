"""TRL's SFTTrainer on the same NF4 folder, the same rows in the same order, the same rates: QLoRA as TRL does it.

What is TRL's own stays: padding on the right, bfloat16 LoRA parameters under bfloat16 autocast, activation
checkpointing and gradients to the embeddings (all layers run backward then, adapted or not). ``trl-plain`` is the same
without checkpointing, which trains faster and takes more memory. TRL 1.16 does not upcast the base
(``prepare_model_for_kbit_training``), and nothing here does.

What is changed: bitsandbytes must not repack the weights for its AVX512-BF16 kernel, which drops gradients. In float32
TRL would keep its LoRA parameters in bfloat16 all the same; they are made float32, so that the precision is equal.
"""

from __future__ import annotations

import importlib.metadata
import os
import time
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.nn import Linear4bit
from datasets import Dataset
from peft import LoraConfig
from torch.optim.lr_scheduler import LambdaLR
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer

from loramux_server.core.jobs import TrainRow
from loramux_server.training.schedule import Schedule

from ..processes import peak_bytes, reset_peak
from ..systems.generate import settle
from ..train_job import Steps, TrainJob, TrainResult
from .rows import load_rows


def run_trl(job: TrainJob) -> TrainResult:
    """Train the first file of a job."""
    torch.set_num_threads(job.threads)
    rows = load_rows(job.base, job.data[0])
    order = Schedule(job.spec, len(rows))
    trainer = _trainer(job, rows, order)
    lengths = [[len(rows[i].input_ids) for i in order.batch(step)] for step in range(order.total_steps)]
    watch = _Watch(trainer, job.every, Path(job.scratch), time.perf_counter())
    trainer.add_callback(watch)
    reset_peak([os.getpid()])
    watch.asked = time.perf_counter()
    trainer.train()
    peak = peak_bytes([os.getpid()])
    losses = tuple(float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry)
    steps = Steps(watch.begin, tuple(watch.ends), tuple(map(sum, lengths)), losses)
    lora = {str(p.dtype).removeprefix("torch.") for p in trainer.model.parameters() if p.requires_grad}
    facts = {
        "trl": importlib.metadata.version("trl"),
        "dtype": job.dtype,
        "LoRA parameters": "/".join(sorted(lora)),
        "checkpointing": str(trainer.args.activation_checkpointing),
        "optimiser": str(getattr(trainer.args.optim, "value", trainer.args.optim)),
        "attention": str(trainer.model.config._attn_implementation),
    }
    return TrainResult((steps,), peak, watch.saved, facts)


class _Ordered(SFTTrainer):
    """Learning rates by the given order, whatever the trainer's own schedule is."""

    order: Schedule

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        peak = self.order.spec.learning_rate
        self.lr_scheduler = LambdaLR(optimizer or self.optimizer, lambda step: self.order.learning_rate(step) / peak)
        return self.lr_scheduler


def _trainer(job: TrainJob, rows: tuple[TrainRow, ...], order: Schedule) -> SFTTrainer:
    spec = job.spec
    batches = [order.batch(step) for step in range(order.total_steps)]
    if any(len(batch) != spec.batch_size for batch in batches):
        raise ValueError(f"{len(rows)} rows make no whole batches of {spec.batch_size}: TRL's would be others")
    chosen = [rows[i] for batch in batches for i in batch]
    labels = [[t if on else -100 for t, on in zip(r.input_ids, r.labels, strict=True)] for r in chosen]
    data = Dataset.from_dict({"input_ids": [list(r.input_ids) for r in chosen], "labels": labels})
    config = SFTConfig(
        output_dir=job.scratch,
        use_cpu=job.device == "cpu",
        bf16=job.dtype == "bfloat16",
        per_device_train_batch_size=spec.batch_size,
        max_steps=order.total_steps,
        train_sampling_strategy="sequential",  # the rows lie in the order of the steps already
        learning_rate=spec.learning_rate,
        adam_beta1=spec.beta1,
        adam_beta2=spec.beta2,
        weight_decay=spec.weight_decay,
        max_grad_norm=spec.max_grad_norm,
        seed=spec.seed,
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},  # the tokens are those of the other systems
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        gradient_checkpointing=job.system == "trl",  # True is TRL's default
    )
    model, targets = _model(job)
    tokenizer = AutoTokenizer.from_pretrained(job.base, local_files_only=True)
    lora = LoraConfig(
        r=spec.rank,
        lora_alpha=int(spec.alpha),
        target_modules=targets,
        layers_to_transform=list(spec.layers) if spec.layers is not None else None,
        task_type="CAUSAL_LM",
    )
    trainer = _Ordered(model=model, args=config, train_dataset=data, processing_class=tokenizer, peft_config=lora)
    trainer.order = order
    if job.dtype == "float32":
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    return trainer


def _model(job: TrainJob) -> tuple[Any, list[str]]:
    """The NF4 folder in transformers, and the last parts of its linears' names."""
    dtype = getattr(torch, job.dtype)
    model = AutoModelForCausalLM.from_pretrained(job.base, dtype=dtype, device_map=job.device, local_files_only=True)
    settle(model, dtype)
    linears = {name: module for name, module in model.named_modules() if isinstance(module, Linear4bit)}
    for module in linears.values():
        module.support_avx512bf16_for_cpu = False
    return model, sorted({name.rpartition(".")[2] for name in linears})


class _Watch(TrainerCallback):
    """Times steps and keeps adapters; the time of keeping is not counted."""

    def __init__(self, trainer: SFTTrainer, every: int, folder: Path, asked: float) -> None:
        self._trainer, self._every, self._folder = trainer, every, folder
        self.asked = asked
        self._apart = 0.0
        self.begin = 0.0
        self.ends: list[float] = []
        self.saved: dict[int, str] = {}

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if not self.ends:
            self.begin = self._now()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.ends.append(self._now())
        step = len(self.ends)
        if self._every and (step % self._every == 0 or step == state.max_steps):
            started = time.perf_counter()
            folder = self._folder / f"step-{step}"
            self._trainer.model.save_pretrained(folder)
            self.saved[step] = str(folder)
            self._apart += time.perf_counter() - started

    def _now(self) -> float:
        return time.perf_counter() - self.asked - self._apart
