"""Retrieval: the ranking against bm25s itself and against a case worked out by hand."""

from __future__ import annotations

import math

import bm25s
import pytest

from loramux_server.services.datasets.retrieval import PassageIndex

PASSAGES = ["The mill opens at nine.", "The miller is Odo.", "Odo opens the gate of the mill at ten.", "Cats: 5"]


def test_the_best_come_first_by_hand() -> None:
    """Lucene's BM25: idf times tf over (tf plus k1 times the share of the mean length)."""
    index = PassageIndex(PASSAGES)
    lengths = [5, 4, 9, 2]
    mean = sum(lengths) / 4

    def score(length: int, *found_in: int) -> float:
        idf = sum(math.log(1 + (4 - n + 0.5) / (n + 0.5)) for n in found_in)
        return idf / (1 + 1.5 * (0.25 + 0.75 * length / mean))

    wanted = {0: score(5, 2, 2), 2: score(9, 2, 2)}  # "mill" and "opens" are each in two passages
    assert wanted[0] > wanted[2]
    assert index.best("Mill opens?", 5) == (PASSAGES[0], PASSAGES[2])
    assert index.best("Mill opens?", 1) == (PASSAGES[0],)
    scores = index._scores(["mill", "opens"])  # type: ignore[misc]
    assert list(scores) == pytest.approx([wanted[0], 0, wanted[2], 0], rel=1e-5)


def test_the_ranking_is_that_of_bm25s() -> None:
    passages = [f"shop {i} keeper {i % 7} street {i * i % 13} {'long ' * (i % 5)}" for i in range(60)]
    ranking = bm25s.BM25()
    ranking.index(bm25s.tokenize(passages, token_pattern=r"(?u)\w+", stopwords=[], show_progress=False), False)
    index = PassageIndex(passages)
    for question in ("Who is keeper 3 in street 4?", "shop 17", "long long street"):
        words = question.lower().replace("?", "").split()
        _, scores = ranking.retrieve([words], k=10, show_progress=False)
        mine = index._scores(words)  # type: ignore[misc]
        found = index.best(question, 10)
        assert [float(mine[passages.index(each)]) for each in found] == pytest.approx(list(scores[0][: len(found)]))


@pytest.mark.parametrize(
    ("question", "found"),
    [
        ("", ()),
        ("?!", ()),
        ("zebra", ()),
        ("5", ("Cats: 5",)),
        ("CATS", ("Cats: 5",)),
        ("the the the", (PASSAGES[2], PASSAGES[1], PASSAGES[0])),
    ],
)
def test_passages_without_a_word_of_the_question_are_not_found(question: str, found: tuple[str, ...]) -> None:
    assert PassageIndex(PASSAGES).best(question, 50) == found


def test_scripts_without_spaces_are_searched_by_character() -> None:
    index = PassageIndex(["営業時間は九時からです。", "駐車場は裏にあります。"])
    assert index.best("何時から営業しますか", 1) == ("営業時間は九時からです。",)


def test_the_earlier_of_equal_passages_comes_first() -> None:
    passages = [f"mill {chr(97 + i) * 3}" for i in range(26)]
    assert PassageIndex(passages).best("mill", 4) == tuple(passages[:4])


def test_passages_without_a_word_find_nothing() -> None:
    assert PassageIndex(["---", "***"]).best("mill", 3) == ()
