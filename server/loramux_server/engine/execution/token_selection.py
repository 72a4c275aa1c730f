"""Token selection: by each sequence's own settings and within its grammar; each token is emitted as it comes.

It has two halves: what is launched on the device, and what the host does when the tokens are known.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from functools import partial
from itertools import compress

import torch
from torch import Tensor

from ...core.backend import TokenEvent
from ...core.errors import Error
from ...core.types import FinishReason, TokenLogprob
from ...lora.buffers import on_device
from ..grammar.masks import GrammarMasks, grammar_error
from ..memory_pressure import MemoryPressure
from ..scheduling.sequence import Sequence, State
from ..transport.protocol import Output
from .failures import no_memory, not_finite
from .model_runner import NONE_CHOSEN, Chosen
from .sampler import Sampling


@dataclass(slots=True)
class Selection:
    """Tokens of sequences that are being selected: the device knows them before the host does."""

    seqs: list[Sequence]
    parts: list[tuple[slice, Sampling]]
    """The sequences of each part, in order."""

    def chosen(self) -> Chosen:
        """The tokens, for a step that is launched before they are read."""
        if not self.parts:
            return NONE_CHOSEN
        tokens = torch.cat([sampling.tokens for _, sampling in self.parts])
        return Chosen(tokens, {seq.id: row for row, seq in enumerate(self.seqs)})


Settled = dict[Sequence, bool]
"""Sequences that got a token, and whether it is the one that :meth:`Selection.chosen` has."""


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

    def launch(self, seqs: Seq[Sequence], logits: Tensor, rows: Seq[int]) -> Selection:
        """Begin to select a token for each sequence, whose row of ``logits`` [rows, vocabulary] is given.

        They are pending then, but for those whose mask is late: the token of these is selected in a later step.
        """
        return self._launch(seqs, logits, rows, time.monotonic())

    def settle(self, selection: Selection) -> Settled:
        """Wait for the tokens, and extend the sequences that still live."""
        settled: Settled = {}
        for part, sampling in selection.parts:
            seqs = selection.seqs[part]
            for seq in seqs:
                seq.pending = False
            self._redraw(seqs, sampling, sampling.wait())
            for row, (seq, found) in enumerate(zip(seqs, sampling.read(), strict=True)):
                if seq.state is State.FINISHED:
                    continue
                if found.token is None:
                    self._end(seq, not_finite(seq.stack))
                    continue
                seq.tokens.append(found.token)
                settled[seq] = row not in sampling.redrawn
                self._emit_token(seq, found.token, found.logprob)
        return settled

    def select(self, seqs: Seq[Sequence], logits: Tensor, firsts: Seq[int], drafts: Seq[Seq[int]]) -> list[int]:
        """Select tokens from ``logits`` [rows, vocabulary]: row ``firsts[i]`` and those after it are sequence i's.

        A row after the first counts only where the one before selected what the draft says, so the tokens are those
        that steps without drafts select. Gives how many tokens of each draft were right.
        """
        accepted = [0] * len(seqs)
        going = list(range(len(seqs)))
        since = time.monotonic()
        while going:
            rows = [firsts[i] + accepted[i] for i in going]
            settled = self.settle(self._launch([seqs[i] for i in going], logits, rows, since))
            settling, going = going, []
            for i in settling:
                seq, draft = seqs[i], drafts[i]
                if seq in settled and accepted[i] < len(draft) and seq.tokens[-1] == draft[accepted[i]]:
                    accepted[i] += 1
                    if seq.state is State.RUNNING:
                        seq.num_computed += 1
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
            self.settle(self._begin(list(seqs), lambda part: torch.stack(rows[part])))

    def _hold(self, seq: Sequence, logits: Tensor) -> None:
        """Keep a copy of a row of logits [vocabulary] until its mask comes."""
        if (row := self._pressure.attempt(logits.clone)) is None:
            self._end(seq, no_memory())
        else:
            self._grammars.hold(seq, row)

    def _launch(self, seqs: Seq[Sequence], logits: Tensor, rows: Seq[int], since: float) -> Selection:
        """:meth:`launch`, where masks are waited for from the moment ``since``."""
        self._grammars.wait(seqs, since)
        ready = [self._grammars.ready(seq) for seq in seqs]
        for seq, row, is_ready in zip(seqs, rows, ready, strict=True):
            if not is_ready:
                self._hold(seq, logits[row])
        return self._begin(list(compress(seqs, ready)), partial(_rows, logits, list(compress(rows, ready))))

    def _begin(self, seqs: list[Sequence], logits: Callable[[slice], Tensor]) -> Selection:
        """Begin to select tokens. ``logits(part)`` gives the rows [sequences, vocabulary] of a part of ``seqs``.

        Those for which there is no memory end.
        """

        def sample_part(part: slice) -> Sampling:
            masks = {i: bits for i, s in enumerate(seqs[part]) if (bits := self._grammars.bits(s)) is not None}
            return Sampling(logits(part), seqs[part], self._eos, masks)

        selection = Selection([], [])
        for part, sampling in self._pressure.in_halves(len(seqs), sample_part):
            if sampling is None:
                self._end(seqs[part.start], no_memory())
                continue
            first = len(selection.seqs)
            selection.seqs += seqs[part]
            selection.parts.append((slice(first, len(selection.seqs)), sampling))
        for seq in selection.seqs:
            seq.pending = True
        return selection

    def _redraw(self, seqs: list[Sequence], sampling: Sampling, short: list[int]) -> None:
        """Draw the tokens of ``short`` rows again; a sequence for which there is no memory ends."""

        def redraw(part: slice) -> bool:
            sampling.redraw(short[part])
            return True

        for part, done in self._pressure.in_halves(len(short), redraw):
            if not done and (seq := seqs[short[part.start]]).state is not State.FINISHED:
                self._end(seq, no_memory())

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
    return logits[part] if len(rows) == len(logits) else logits[on_device(rows[part], logits.device)]
