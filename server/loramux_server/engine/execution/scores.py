"""Log-probabilities of scoring requests, collected chunk by chunk until each is complete."""

from __future__ import annotations

import torch
from torch import Tensor

from ...core.backend import ScoreResult
from ...core.errors import LOGITS_NOT_FINITE, Code, Error
from ...core.types import Stack
from ..scheduling.plan import Work
from ..scheduling.sequence import Sequence


def not_finite(stack: Stack) -> Error:
    """The failure of a request whose logits are not finite: of its adapters if it has any, else of the server."""
    if not stack:
        return Error(Code.INTERNAL, "the base gave logits that are not finite", reason=LOGITS_NOT_FINITE)
    names = ", ".join(entry.adapter.ref for entry in stack.entries)
    return Error(
        Code.FAILED_PRECONDITION,
        f"the logits are not finite with this stack ({names}): its values are too large for the model; give smaller"
        " weights, or leave an adapter out",
        reason=LOGITS_NOT_FINITE,
    )


class ScoreCollector:
    """What is known so far of every live scoring request."""

    def __init__(self) -> None:
        self._found: dict[str, list[tuple[float, bool]]] = {}

    def __len__(self) -> int:
        """Requests that are open."""
        return len(self._found)

    def open(self, seq: Sequence) -> None:
        """Begin a sequence, if it is one to score."""
        if seq.score_from is not None:
            self._found[seq.id] = []

    def close(self, id: str) -> None:
        """The sequence is over. Unknown ids are fine."""
        self._found.pop(id, None)

    def add(self, seq: Sequence, work: Work, logits: Tensor | None) -> ScoreResult | None:
        """Take in what a step computed of ``seq``; gives the result once that is computed to its end.

        ``logits`` [positions, vocabulary] are those whose next token is scored; none in a chunk that scores nothing.
        Raises what :func:`not_finite` says when they are not finite.
        """
        assert seq.score_from is not None
        found = self._found[seq.id]
        if logits is not None and len(logits):
            position = work.scored.start + 1
            values = logits.float()
            targets = torch.tensor(seq.tokens[position : position + len(values)], device=values.device)
            logprobs = values.log_softmax(-1).gather(-1, targets[:, None]).flatten()
            if bool(logprobs.isnan().any()):
                raise not_finite(seq.stack)
            # Preemption computes a chunk again: what is known already is not added twice.
            known = len(found) - (position - seq.score_from)
            pairs = zip(logprobs.tolist(), (values.argmax(-1) == targets).tolist(), strict=True)
            found += list(pairs)[max(known, 0) :]
        if seq.num_computed < len(seq.tokens):
            return None
        return ScoreResult(tuple(p for p, _ in found), tuple(g for _, g in found))
