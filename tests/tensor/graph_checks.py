"""Every decode step with graphs and without, side by side."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from loramux_server.engine.execution.model_runner import ModelRunner


def compute_both_ways(monkeypatch: pytest.MonkeyPatch, alike: Callable[[Tensor, Tensor], bool]) -> None:
    """From now on a step of an engine with graphs is computed eagerly too, and ``alike(got, expected)`` must hold.

    Both may run, because both write the same keys and values. Rows that are not numbers must be so both ways.
    """
    run = ModelRunner.run

    def twice(self, plan, *chosen):  # type: ignore[no-untyped-def]
        if self.graphs is None:
            return run(self, plan, *chosen)
        graphs, self.graphs = self.graphs, None
        expected = run(self, plan, *chosen)
        self.graphs = graphs
        got = run(self, plan, *chosen)
        assert got.scores.keys() == expected.scores.keys()
        pairs = [(got.next_token, expected.next_token), *((got.scores[i], expected.scores[i]) for i in got.scores)]
        for a, b in pairs:
            finite = b.isfinite().all(-1)
            assert torch.equal(a.isfinite().all(-1), finite)
            if finite.any():
                assert alike(a[finite], b[finite])
        return got

    monkeypatch.setattr(ModelRunner, "run", twice)
