"""Token selection: by each sequence's own settings and within its grammar; each token is emitted as it comes."""

from __future__ import annotations

import time
from collections.abc import Callable
from collections.abc import Sequence as Seq
from functools import partial
from itertools import accumulate

import torch
from torch import Tensor

from ...core.backend import TokenEvent
from ...core.errors import Error
from ...core.types import FinishReason, TokenLogprob
from ..grammar.masks import GrammarMasks, grammar_error
from ..memory_pressure import MemoryPressure
from ..scheduling.sequence import Sequence, State
from ..transport.protocol import Output
from .failures import no_memory, not_finite
from .sampler import SampledToken, sample


class TokenSelector:
    """Extends sequences by a token each. ``finish`` takes one out that is complete, ``end`` one that failed."""

    def __init__(
        self,
        grammars: GrammarMasks,
        eos: tuple[int, ...],
        finish: Callable[[Sequence], None],
        end: Callable[[Sequence, Error], None],
        emit: Callable[[Output], None],
        pressure: MemoryPressure,
    ) -> None:
        self._grammars, self._eos, self._pressure = grammars, eos, pressure
        self._finish, self._end, self._emit = finish, end, emit

    def select(self, seqs: Seq[Sequence], logits: Tensor, drafts: Seq[Seq[int]]) -> list[int]:
        """Sample tokens from ``logits`` [rows, vocabulary], where sequence i has ``1 + len(drafts[i])`` rows.

        A row after the first counts only where the one before selected what the draft says, so the tokens are those
        that steps without drafts select. Where a mask is late, its token is selected in a later step. Gives how many
        tokens of each draft were right.
        """
        accepted = [0] * len(seqs)
        firsts = list(accumulate((1 + len(draft) for draft in drafts), initial=0))
        going = list(range(len(seqs)))
        since = time.monotonic()
        while going:
            self._grammars.wait([seqs[i] for i in going], since)
            ready = [i for i in going if self._grammars.ready(seqs[i])]
            rows = [firsts[i] + accepted[i] for i in ready]
            for i in set(going).difference(ready):
                self._hold(seqs[i], logits[firsts[i] + accepted[i]])
            chosen = self._extend([seqs[i] for i in ready], partial(_rows, logits, rows))
            going = []
            for i, token in zip(ready, chosen, strict=True):
                if accepted[i] < len(drafts[i]) and token == drafts[i][accepted[i]]:
                    accepted[i] += 1
                    if seqs[i].state is State.RUNNING:
                        seqs[i].num_computed += 1
                        going.append(i)
        return accepted

    def handle_masks(self) -> None:
        """End the sequences whose grammar is complete or broken, and select the tokens that waited for their masks."""
        for seq, mask in self._grammars.news():
            if mask.code is not None:
                assert seq.grammar is not None
                self._end(seq, grammar_error(seq.grammar, mask))
            elif mask.complete or seq.num_output >= seq.sampling.max_tokens:
                self._finish(seq)
                reason = FinishReason.STOP if mask.complete else FinishReason.LENGTH
                times = seq.times(time.monotonic())
                event = TokenEvent(seq.id, (), (), reason, cached_tokens=seq.num_cached, times=times)
                self._emit(Output(seq.id, event, done=True))
        if due := self._grammars.due():
            seqs, rows = zip(*due, strict=True)
            self._extend(seqs, lambda part: torch.stack(rows[part]))

    def _hold(self, seq: Sequence, logits: Tensor) -> None:
        """Keep a copy of a row of logits [vocabulary] until its mask comes."""
        if (row := self._pressure.attempt(logits.clone)) is None:
            self._end(seq, no_memory())
        else:
            self._grammars.hold(seq, row)

    def _extend(self, seqs: Seq[Sequence], logits: Callable[[slice], Tensor]) -> list[int | None]:
        """Select a token for each sequence; None where its logits are not finite, or found no memory.

        ``logits(part)`` gives the rows [sequences, vocabulary] of a part of ``seqs``.
        """

        def sample_part(part: slice) -> list[SampledToken]:
            masks = {i: bits for i, s in enumerate(seqs[part]) if (bits := self._grammars.bits(s)) is not None}
            return sample(logits(part), seqs[part], self._eos, masks)

        tokens: list[int | None] = []
        for part, sampled in self._pressure.in_halves(len(seqs), sample_part):
            if sampled is None:
                self._end(seqs[part.start], no_memory())
                tokens.append(None)
                continue
            for seq, found in zip(seqs[part], sampled, strict=True):
                tokens.append(found.token)
                if found.token is None:
                    self._end(seq, not_finite(seq.stack))
                    continue
                seq.tokens.append(found.token)
                self._emit_token(seq, found.token, found.logprob)
        return tokens

    def _emit_token(self, seq: Sequence, token: int, logprob: TokenLogprob | None) -> None:
        s = seq.sampling
        now = time.monotonic()
        first, seq.answered = not seq.answered, seq.answered or now
        stopped = token in s.end_ids(self._eos, seq.grammar is not None)
        # With a grammar the last token may complete the answer; the mask after it tells.
        full = seq.num_output >= s.max_tokens and seq.grammar is None
        reason = FinishReason.STOP if stopped else FinishReason.LENGTH if full else None
        if reason is not None:
            self._finish(seq)
        else:
            self._grammars.step(seq, token)
        times = seq.times(now) if first or reason is not None else None
        logprobs = () if logprob is None else (logprob,)
        event = TokenEvent(seq.id, (token,), logprobs, reason, cached_tokens=seq.num_cached, times=times)
        self._emit(Output(seq.id, event, done=reason is not None))


def _rows(logits: Tensor, rows: list[int], part: slice) -> Tensor:
    """A part of the ``rows`` of ``logits``, without a copy where these are all of them."""
    return logits[part] if len(rows) == len(logits) else logits[rows[part]]
