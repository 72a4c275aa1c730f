"""Passages for a question, found by BM25: what a search engine would put before it."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ...core.errors import Code, Error

_CJK = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
WORD = rf"[{_CJK}]|[^\W{_CJK}]+"
"""A word. Scripts without spaces between words are searched by character."""


class PassageIndex:
    """An index over passages; blocking to make. Raises FAILED_PRECONDITION where the server has no BM25."""

    def __init__(self, passages: Sequence[str]) -> None:
        try:
            import bm25s  # an extra, and slow to import
        except ModuleNotFoundError as error:
            raise Error(
                Code.FAILED_PRECONDITION,
                "compare_documents needs the package bm25s (extra 'compare') on the server; install it there with: "
                "pip install bm25s",
                reason="COMPARE_NOT_INSTALLED",
            ) from error

        self._passages = passages
        tokens = bm25s.tokenize(list(passages), token_pattern=WORD, stopwords=[], show_progress=False)
        self._scores = None
        if any(tokens.ids):
            ranking = bm25s.BM25()  # Lucene's, with k1 1.5 and b 0.75
            ranking.index(tokens, show_progress=False)
            self._scores = ranking.get_scores

    def best(self, question: str, count: int) -> tuple[str, ...]:
        """The ``count`` passages that fit a question best, the best first; fewer where fewer share a word with it.

        Of passages that fit alike, the earlier one comes first.
        """
        words = re.findall(WORD, question.lower())
        if self._scores is None or not words:
            return ()
        scores = self._scores(words)
        order = (-scores).argsort(kind="stable")[:count]
        return tuple(self._passages[i] for i in order if scores[i] > 0)
