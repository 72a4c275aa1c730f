"""Drafts by prompt lookup: what is found, how much of it pays, and what is learnt from how it fared."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from loramux_server.engine.scheduling.drafts import LONGEST, NGRAM, NgramDrafter
from loramux_server.engine.scheduling.sequence import Sequence
from tests.examples import examples

from .simulation import sequence

CHEAP = 1e-6
"""Cost of a row at which every draft pays."""


def draft(drafter: NgramDrafter, *seqs: Sequence, most: int = LONGEST) -> dict[str, tuple[int, ...]]:
    return drafter.draft(seqs, len(seqs), {seq.id: most for seq in seqs})


@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.integers(1, 20))
@examples(300)
def test_a_draft_is_what_followed_the_last_tokens_before(tokens: list[int], most: int) -> None:
    """However many tokens came between two steps, as a search of the whole text finds it."""
    drafter, seq = NgramDrafter(CHEAP), sequence("a", tokens[:1], 100)
    for end in sorted({1, len(tokens) // 2 or 1, len(tokens)}):
        seq.tokens[:] = tokens[:end]
        found = draft(drafter, seq, most=most).get("a", ())
        last = seq.tokens[-NGRAM:]
        starts = [i for i in range(NGRAM, end) if seq.tokens[i - NGRAM : i] == last]
        if not starts:
            assert found == ()
            continue
        assert len(found) == min(most, LONGEST)
        text = list(seq.tokens)
        for token in found:  # where it goes past the end, the text goes on as it just began to
            assert token == text[starts[-1] + len(text) - end]
            text.append(token)


def test_nothing_is_drafted_where_one_token_is_left() -> None:
    assert draft(NgramDrafter(CHEAP), sequence("a", [1, 2, 3] * 3, 9), most=0) == {}


def repeating(id: str) -> Sequence:
    return sequence(id, [1, 2, 3, 4, 5] * 8, 100)


def test_a_full_batch_has_no_drafts_and_a_lone_sequence_long_ones() -> None:
    """What a row gives beside one sequence, it does not give beside many."""
    alone = draft(NgramDrafter(0.1), repeating("a"))
    many = draft(NgramDrafter(0.1), *(repeating(f"s{i}") for i in range(64)))
    assert len(alone["a"]) > 1
    assert many == {}


def test_rows_go_to_the_likeliest() -> None:
    drafter = NgramDrafter(0.3)
    good, bad = repeating("good"), repeating("bad")
    draft(drafter, good, bad)
    for _ in range(10):
        drafter.verified("good", 5, 5)
        drafter.verified("bad", 1, 0)
    drafts = draft(drafter, good, bad)
    assert len(drafts["good"]) > 3
    assert "bad" not in drafts
    assert (drafter.drafted, drafter.accepted) == (60, 50)


def test_drafts_that_are_wrong_end_and_are_tried_again_later() -> None:
    drafter, seq = NgramDrafter(0.1), repeating("a")
    lengths = []
    for _ in range(400):
        found = draft(drafter, seq).get("a", ())
        lengths.append(len(found))
        if found:
            drafter.verified("a", len(found), 0)
    tries = [i for i, length in enumerate(lengths) if length]
    assert lengths[0] > 1
    assert len(tries) < 40, "they cost too much"
    assert tries[-1] > 350, "a text that repeats later would never be noticed"
    assert all(length <= 1 for length in lengths[50:])


def test_what_is_over_is_forgotten() -> None:
    drafter = NgramDrafter(0.1)
    draft(drafter, repeating("a"), repeating("b"))
    drafter.forget("a")
    drafter.forget("never seen")
    drafter.verified("a", 3, 1)
    assert len(drafter) == 1


def test_a_step_waits_for_tokens_where_drafts_are_likely_to_follow_them() -> None:
    """The text repeats, and drafts have been right: more is gained than a step that waits loses."""
    drafter, seq = NgramDrafter(CHEAP, wait_cost=0.3), repeating("a")
    assert drafter.worth_waiting([seq])
    assert not drafter.worth_waiting([sequence("new", [*range(40)], 100)]), "no draft can follow"
    assert not NgramDrafter(CHEAP, wait_cost=20.0).worth_waiting([seq])
    others = [sequence(f"s{i}", [*range(100 * i, 100 * i + 40)], 100) for i in range(1, 30)]
    assert not drafter.worth_waiting([seq, *others]), "one of thirty gains less than all of them lose"


def test_a_step_waits_no_more_once_drafts_were_wrong_and_again_after_a_while() -> None:
    drafter, seq = NgramDrafter(CHEAP, wait_cost=0.3), repeating("a")
    for _ in range(20):
        drafter.verified(seq.id, 1, 0)
        draft(drafter, seq)
    assert not drafter.worth_waiting([seq])
    assert any(drafter.worth_waiting([seq]) for _ in range(1000))


def test_waiting_costs_nothing_where_nothing_is_computed_meanwhile() -> None:
    assert NgramDrafter(CHEAP).worth_waiting([repeating("a")])
    assert not NgramDrafter(CHEAP).worth_waiting([sequence("new", [*range(40)], 100)])
