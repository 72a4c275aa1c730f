"""What a training run should give: plain loops over transformers and PEFT, one row at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, log_softmax, logsigmoid

from loramux_server.core.jobs import TrainRow, TrainSpec
from loramux_server.lora.trainable import TrainableAdapter
from loramux_server.model.resident import ResidentBase
from loramux_server.training.schedule import Schedule
from loramux_server.training.setup import target_modules
from tests.oracle import StackSpec, load_plain

SMALL = TrainSpec(rank=2, alpha=4)


def initial_adapter(base: ResidentBase, spec: TrainSpec) -> TrainableAdapter:
    """The parameters that a job with these settings starts from."""
    return TrainableAdapter(
        base.groups,
        target_modules(spec, base.groups),
        rank=spec.rank,
        alpha=spec.alpha,
        rslora=spec.rslora,
        dropout=0.0,
        generator=torch.Generator().manual_seed(spec.seed),
        device=torch.device("cpu"),
    )


class PeftLoop:
    """A plain model with a trained adapter from ``initial`` and one frozen PEFT stack a turn underneath."""

    def __init__(self, base: Path, spec: TrainSpec, initial: TrainableAdapter, under: Sequence[StackSpec]) -> None:
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(
            r=spec.rank,
            lora_alpha=spec.alpha,  # type: ignore[arg-type]
            use_rslora=spec.rslora,
            target_modules=sorted({n.rpartition(".")[2] for n in initial.parameters}),
            layers_to_transform=list(spec.layers) if spec.layers else None,
            task_type="CAUSAL_LM",
        )
        self.spec, self.under = spec, under
        self.reference: list[str] = []  # adapters beside the stack by which DPO's rewards are measured
        self.peft: Any = get_peft_model(load_plain(base, torch.float32), config)
        for index, stack in enumerate(under):
            for folder, _ in stack:
                self.peft.load_adapter(str(folder), adapter_name=f"u{index}-{folder.name}", is_trainable=False)
        self.weights: list[Any] = []
        self.modules: dict[str, tuple[Any, Any]] = {}  # A and B by module
        for name, module in self.peft.named_modules():
            if hasattr(module, "lora_A") and "default" in module.lora_A:
                pair = module.lora_A["default"].weight, module.lora_B["default"].weight
                with torch.no_grad():
                    for weight, value in zip(
                        pair, initial.parameters[name.removeprefix("base_model.model.")], strict=True
                    ):
                        weight.copy_(value)
                self.weights += pair
                self.modules[name.removeprefix("base_model.model.")] = pair

    def keep_initial(self) -> None:
        """Make the present values of the trained adapter the reference, as a second PEFT adapter that stays."""
        self.peft.add_adapter("reference", self.peft.peft_config["default"])
        for module in self.peft.modules():
            if hasattr(module, "lora_A") and "reference" in module.lora_A:
                for side in (module.lora_A, module.lora_B):
                    side["reference"].load_state_dict(side["default"].state_dict())
        self.reference = ["reference"]

    def logits(self, row: TrainRow, turn: int, *, trained: bool = True) -> Tensor:
        """Logits [tokens, vocabulary] for a row's learned tokens over stack ``turn``, ``trained`` or the reference."""
        names = ["default"] if trained else list(self.reference)
        for folder, weight in self.under[turn]:
            names.append(f"u{turn}-{folder.name}")
            for module in self.peft.modules():
                if hasattr(module, "set_scale") and names[-1] in getattr(module, "lora_A", {}):
                    module.set_scale(names[-1], weight)
        ids = torch.tensor([row.input_ids])
        if names:
            self.peft.base_model.set_adapter(names)
        for p in self.peft.parameters():
            p.requires_grad_(False)
        for w in self.weights:
            w.requires_grad_(True)
        if names:
            logits = self.peft(input_ids=ids, use_cache=False).logits[0, :-1]
        else:
            with self.peft.disable_adapter():
                logits = self.peft(input_ids=ids, use_cache=False).logits[0, :-1]
        found: Tensor = logits[torch.tensor(row.labels[1:])]
        return found

    def logprobs(self, row: TrainRow, turn: int, *, trained: bool = True) -> Tensor:
        """Log-probabilities of a row's learned tokens, as :meth:`logits`."""
        learned = [id for id, label in zip(row.input_ids[1:], row.labels[1:], strict=True) if label]
        return -cross_entropy(self.logits(row, turn, trained=trained), torch.tensor(learned), reduction="none")

    def divergence(self, row: TrainRow, turn: int, *, trained: bool = True) -> Tensor:
        """KL(teacher || student) at a row's learned tokens, summed; the teacher has the context and no adapter."""
        assert row.teacher is not None
        with torch.no_grad():
            teacher = log_softmax(self.logits(row.teacher, turn, trained=False), dim=-1)
        student = log_softmax(self.logits(row, turn, trained=trained), dim=-1)
        return kl_div(student, teacher, reduction="sum", log_target=True)

    def run(
        self,
        data: Sequence[TrainRow],
        turns: Sequence[int],
        rows_of: Callable[[int], Mapping[int, TrainRow]] | None = None,
    ) -> list[float]:
        """Train, and give the loss of each step; ``rows_of`` has the rows of a step where they are not ``data``'s."""
        spec = self.spec
        optimizer = torch.optim.AdamW(self.weights, betas=(spec.beta1, spec.beta2), weight_decay=spec.weight_decay)
        order = Schedule(spec, len(data))
        losses = []
        for step in range(order.total_steps):
            batch = order.batch(step)
            total = 0.0
            rows = {i: data[i] for i in batch} if rows_of is None else rows_of(step)
            for i in batch:
                loss = self._loss(rows, i, turns[i])
                loss.backward()
                total += float(loss.detach())
            torch.nn.utils.clip_grad_norm_(self.weights, spec.max_grad_norm)
            for group in optimizer.param_groups:
                group["lr"] = order.learning_rate(step)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(total)
        return losses

    def _loss(self, rows: Mapping[int, TrainRow], i: int, turn: int) -> Tensor:
        if self.spec.method in ("sft", "distill"):
            loss = (
                self.divergence(rows[i], turn) if self.spec.method == "distill" else -self.logprobs(rows[i], turn).sum()
            )
            return loss / sum(sum(row.labels[1:]) for row in rows.values())
        ratios = []
        for text in (rows[i], rows[i].rejected):
            assert text is not None
            with torch.no_grad():
                reference = self.logprobs(text, turn, trained=False).sum()
            ratios.append(self.logprobs(text, turn).sum() - reference)
        return -logsigmoid(self.spec.beta * (ratios[0] - ratios[1])) / len(rows)


def peft_losses(
    base: Path,
    spec: TrainSpec,
    data: Sequence[TrainRow],
    initial: TrainableAdapter,
    under: Sequence[StackSpec] = ((),),
    turns: Sequence[int] | None = None,
) -> list[float]:
    """Losses of a plain loop; row i of ``data`` over ``under[turns[i]]``."""
    return PeftLoop(base, spec, initial, under).run(data, turns or [0] * len(data))
