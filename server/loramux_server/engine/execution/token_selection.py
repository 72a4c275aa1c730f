"""Token selection: by each sequence's own settings and within its grammar; each token is emitted as it comes."""

from __future__ import annotations

import time
from collections.abc import Callable
from collections.abc import Sequence as Seq

import torch
from torch import Tensor

from ...core.backend import TokenEvent
from ...core.errors import Error
from ...core.types import FinishReason, TokenLogprob
from ..grammar.masks import GrammarMasks, grammar_error
from ..scheduling.sequence import Sequence
from ..transport.protocol import Output
from .sampler import sample
from .scores import not_finite


class TokenSelector:
    """Extends sequences by a token each. ``finish`` takes one out that is complete, ``end`` one that failed."""

    def __init__(
        self,
        grammars: GrammarMasks,
        eos: tuple[int, ...],
        finish: Callable[[Sequence], None],
        end: Callable[[Sequence, Error], None],
        emit: Callable[[Output], None],
    ) -> None:
        self._grammars, self._eos = grammars, eos
        self._finish, self._end, self._emit = finish, end, emit

    def select(self, seqs: Seq[Sequence], logits: Tensor) -> None:
        """Sample a token for each row of ``logits`` [sequences, vocabulary]; where a mask is late, in a later step."""
        self._grammars.wait(seqs)
        late = [i for i, s in enumerate(seqs) if not self._grammars.ready(s)]
        for i in late:
            self._grammars.hold(seqs[i], logits[i])
        rows = [i for i in range(len(seqs)) if i not in late]
        self._extend([seqs[i] for i in rows], logits[rows] if late else logits)

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
            self._extend(seqs, torch.stack(rows))

    def _extend(self, seqs: Seq[Sequence], logits: Tensor) -> None:
        """Select a token from each row of ``logits`` [sequences, vocabulary]."""
        masks = {i: bits for i, s in enumerate(seqs) if (bits := self._grammars.bits(s)) is not None}
        for seq, found in zip(seqs, sample(logits, seqs, self._eos, masks), strict=True):
            if found.token is None:
                self._end(seq, not_finite(seq.stack))
                continue
            seq.tokens.append(found.token)
            self._emit_token(seq, found.token, found.logprob)

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
