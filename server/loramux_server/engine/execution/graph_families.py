"""Which families of graphs an engine has, in the order in which a step asks them."""

from __future__ import annotations

import logging
import time

from torch import Tensor

from ...lora.bank import AdapterBank
from ...lora.indexed.plan import SHORT
from ...model.base.context_length import max_context
from ...model.kv import KVPool
from ...model.resident import ResidentBase
from .capture import Capture
from .graphs import MOST, GraphFamily, PackedStep, Parts, upto, vocabulary

log = logging.getLogger(__name__)

ROWS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)
"""Rows of a step that decodes. At more, the products take longer than launching them."""
CONTEXTS = (2048, 8192, 32768)
"""Tokens of the longest context, in graphs of FEW rows: there attention needs splits of it to fill a GPU."""
FEW = 16
TOKENS = (128, 256, 384, 512, 768, 1024, 1536, 2048)
"""Rows of a step with prompts."""
SPANS = (16, 64)
"""Sequences of such a step: attention has idle programs for each that there may be."""
START_SECONDS = 60.0
"""For captures before the server is ready; one takes about three steps' time, and there are up to 88."""
NODE_BYTES = 128 << 10
"""Assumed memory of one graph's nodes, per layer of the model."""
ACTIVATIONS = 8
"""Assumed size of what a step holds at once, as a multiple of the widest linear's inputs and outputs."""


class StepGraphs:
    """All graphs of an engine."""

    def __init__(
        self, base: ResidentBase, kv: KVPool, bank: AdapterBank, max_rows: int, max_tokens: int, capture: Capture
    ) -> None:
        """For decode steps of up to ``max_rows`` rows and steps with prompts of up to ``max_tokens``."""
        rows, tokens = upto(ROWS, max_rows), upto(TOKENS, min(max_tokens, TOKENS[-1]))
        spans = upto(SPANS, max_rows)
        # An item of a plan ends with its segment, so each span may begin one more.
        most = max(rows[-1], tokens[-1] + SHORT * spans[-1])
        self._parts = Parts.of(base, kv, bank, capture, max(rows[-1], spans[-1]), most)
        few = [n for n in rows if n <= FEW]
        contexts = [n for n in CONTEXTS if n < max_context(base.model)]
        # The largest first: the others find room in the memory that its capture took.
        prompts = [GraphFamily(self._parts, tokens, spans=n) for n in reversed(spans) if n < tokens[-1]]
        self.families = [*prompts, GraphFamily(self._parts, rows)]
        self.families += [GraphFamily(self._parts, few, context=n) for n in reversed(contexts)]

    @property
    def count(self) -> int:
        """Graphs captured and kept."""
        return sum(family.count for family in self.families)

    @property
    def failures(self) -> int:
        """Captures that failed."""
        return self._parts.failures

    @property
    def nbytes(self) -> int:
        return self._parts.nbytes

    def prepare(self) -> None:
        """Capture what each family has at the start, for about START_SECONDS; what is left when steps need it.

        The largest comes first, because all others find room in its memory, then those of steps that decode.
        """
        began = time.monotonic()
        largest, *others = [(family, bucket) for family in self.families for bucket in family.at_start]
        others.sort(key=lambda each: not each[0].only_decodes)
        for family, bucket in (largest, *others):
            if time.monotonic() - began > START_SECONDS:
                log.warning("capturing CUDA graphs takes long: the others are captured when steps first need them")
                break
            family.prepare([bucket])
        log.info("%d CUDA graphs were captured in %.1f s", self.count, time.monotonic() - began)

    def run(self, step: PackedStep) -> Tensor | None:
        """As :meth:`.graphs.Graphs.run`."""
        answers = (family.run(step) for family in reversed(self.families))
        return next((logits for logits in answers if logits is not None), None)


def graph_bytes(base: ResidentBase, max_rows: int, max_tokens: int) -> int:
    """Memory to leave for graphs: an estimate that is meant to be high.

    The nodes of twice as many graphs as a family may keep; what the largest step computes; the logits of the largest
    bucket in both types that they pass through and in the buffer that they are read from; the largest weight, which
    some products dequantise whole.
    """
    logits = upto(ROWS, max_rows)[-1] * vocabulary(base) * (4 + 4 + base.dtype.itemsize)
    widest = max(n + k for n, k in base.modules.values())
    activations = ACTIVATIONS * min(max_tokens, TOKENS[-1]) * widest * base.dtype.itemsize
    weight = max(n * k for n, k in base.modules.values()) * base.dtype.itemsize
    return 2 * MOST * len(base.layers) * NODE_BYTES + activations + logits + weight
