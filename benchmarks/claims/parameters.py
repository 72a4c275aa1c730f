"""How many parameters are trained: by rank and target modules, and of one adapter that the server has trained."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from .results import Results
from .setting import Setting

RANKS = (4, 8, 16, 64)
TARGETS: dict[str, tuple[str, ...]] = {
    "q_proj, v_proj": ("q_proj", "v_proj"),
    "attention": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "all linears": (),
}
"""Last parts of the names of linears; empty: all."""


def count(linears: Mapping[str, Iterable[int]], rank: int, targets: tuple[str, ...]) -> int:
    """Parameters of an adapter: rank * (in + out) for each linear."""
    chosen = (sizes for name, sizes in linears.items() if not targets or name.rpartition(".")[2] in targets)
    return sum(rank * sum(sizes) for sizes in chosen)


def measure(setting: Setting, results: Results) -> None:
    """Count, by the shapes of the base's linears."""
    from ..material import linears

    found = linears(setting.nf4)
    rows = [
        {"rank": rank, "targets": name, "trained": count(found, rank, targets)}
        for name, targets in TARGETS.items()
        for rank in RANKS
    ]
    results.put("parameters", {"base": base_parameters(setting), "rows": rows})


def base_parameters(setting: Setting) -> int:
    """Weights of the base, tied ones counted once."""
    from ..material import skeleton

    return sum(weight.numel() for weight in skeleton(setting.nf4).parameters())
