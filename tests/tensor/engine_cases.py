"""A base with a handful of adapters, what each request gives on its own, and engines to try the same requests in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from random import Random

import torch
from safetensors.torch import load_file, save_file

from loramux_server.core.types import AdapterVersion, Stack
from loramux_server.lora.bank import AdapterBank
from tests.engine import Engine, check_tokens, command, prompts, stack_of, version_of

RANKS = {"all": 4, "rs": 7, "upper": 2, "attention": 3, "broken": 4}
STACKS: tuple[tuple[tuple[str, float], ...], ...] = (
    (),
    (("all", 1.0),),
    (("rs", 1.0),),
    (("all", 0.7), ("rs", -0.5)),
    (("upper", 1.3),),
    (("attention", 1.0), ("upper", 0.5)),
    (("all", 0.0),),
    (("rs", 0.25), ("upper", 1.0), ("all", 1.5)),
)
TOKENS = 14


@dataclass(frozen=True)
class Case:
    """One greedy request."""

    prompt: tuple[int, ...]
    stack: Stack
    max_tokens: int = TOKENS


@dataclass
class Cases:
    """Everything that the tests of one base share."""

    base: Path
    root: Path
    folders: dict[str, Path]
    versions: dict[str, AdapterVersion] = field(init=False)
    _alone: dict[tuple[tuple[int, ...], Stack], list[tuple[int, float]]] = field(default_factory=dict)
    _engines: list[Engine] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.versions = {name: version_of(folder, RANKS[name]) for name, folder in self.folders.items()}
        self.reference = self.engine()
        texts = prompts(6, lengths=(18, 40), seed=11)
        # Prompts that begin alike, so that requests meet in the prefix cache.
        self.prompts = [tuple(t) for t in (*texts, *(a[:17] + b for a, b in pairwise(texts)))]
        self.prompts += [prompt[:14] for prompt in self.prompts]

    def engine(self, *, kv_pages: int | None = None, adapter_rows: int | None = None, **settings: object) -> Engine:
        """A new engine on the same base, with caches of the given sizes."""
        if kv_pages is not None:
            shape = self.reference.base.kv_shape
            settings["kv_cache_memory"] = kv_pages * shape.page_bytes(torch.float32)
        if adapter_rows is not None:
            row = AdapterBank.row_bytes(self.reference.base.groups, torch.float32)
            settings["adapter_memory"] = adapter_rows * row
        made = Engine(self.base, self.root / f"state{len(self._engines)}", **settings)
        self._engines.append(made)
        return made

    def stack(self, entries: Sequence[tuple[str, float]]) -> Stack:
        return stack_of(*((self.versions[name], weight) for name, weight in entries))

    def alone(self, case: Case) -> list[tuple[int, float]]:
        """Tokens of a request by itself with nothing cached, and how far each led."""
        key = case.prompt, case.stack
        if key not in self._alone:
            engine, id = self.reference, f"alone-{len(self._alone)}"
            engine.scheduler.pages.clear_cached()
            engine.run(command(id, case.prompt, TOKENS, case.stack))
            leads = [row.topk(2).values for row in engine.logits[id]]
            gaps = [float(best - second) for best, second in leads]
            self._alone[key] = list(zip(engine.tokens(id), gaps, strict=True))
        return self._alone[key][: case.max_tokens]

    def draw(self, random: Random, most: int, stacks: Sequence[Sequence[tuple[str, float]]] = STACKS) -> list[Case]:
        """Up to ``most`` random requests."""
        return [
            Case(random.choice(self.prompts), self.stack(random.choice(stacks)), random.randint(1, TOKENS))
            for _ in range(random.randint(1, most))
        ]

    def try_in(self, engine: Engine, cases: Sequence[Case], *, stagger: Callable[[], bool] = lambda: False) -> None:
        """Run ``cases`` together, turning in between where ``stagger`` says so; each must give what it gives alone."""
        ids = [f"case-{len(engine.outputs)}-{i}" for i in range(len(cases))]
        for id, case in zip(ids, cases, strict=True):
            engine.submit(command(id, case.prompt, case.max_tokens, case.stack))
            if stagger():
                engine.loop.turn()
        engine.finish(*ids)
        for id, case in zip(ids, cases, strict=True):
            assert engine.failure(id) is None, engine.failure(id)
            check_tokens(engine.tokens(id), self.alone(case))
        check_empty(engine)

    def close(self) -> None:
        for engine in self._engines:
            engine.close()


def check_empty(engine: Engine) -> None:
    """Nothing is held by anybody."""
    held = {kind: count for kind, count in engine.loop.idle_state().items() if count}
    assert not held, held


def make_cases(base: Path, root: Path, make_adapter: Callable[..., Path]) -> Cases:
    folders = {
        "all": make_adapter(root / "all", base, rank=4, alpha=8, seed=1),
        "rs": make_adapter(root / "rs", base, rank=7, alpha=3, rslora=True, seed=2),
        "upper": make_adapter(root / "upper", base, rank=2, alpha=6, layers=[1, 2], seed=3),
        "attention": make_adapter(root / "attention", base, rank=3, targets=["q_proj", "o_proj"], seed=4),
        "broken": make_adapter(root / "broken", base, rank=4, seed=5),
    }
    # Finite on disk, infinite in the first product.
    file = folders["broken"] / "adapter_model.safetensors"
    save_file({k: v * 1e38 for k, v in load_file(file).items()}, file, metadata={"format": "pt"})
    assert all(t.isfinite().all() for t in load_file(file).values())
    return Cases(base, root, folders)
