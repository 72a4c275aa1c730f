"""Columns that say how good an answer is: one that is called bad must not be learned as a good one.

KTO's ``label``, thumbs, ratings and scores. Shared by the converter and the server, so it takes plain values only.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

SIGNS = frozenset(
    (
        *("label", "kto_tag", "desirable", "is_desirable", "preferred", "is_preferred", "accepted"),
        *("is_accepted", "approved", "is_approved", "liked", "like", "thumbs_up", "thumbsup", "upvoted"),
        *("good", "is_good", "correct", "is_correct", "vote", "votes", "feedback", "human_feedback"),
        *("user_feedback", "reaction", "verdict", "weight", "thumb", "thumbs", "helpful", "is_helpful"),
        *("safe", "is_safe", "valid", "is_valid"),
    )
)
"""Columns whose false, zero or negative value, or word for bad, speaks against the answer."""
INVERSE = frozenset(
    (
        *("thumbs_down", "thumbsdown", "downvoted", "disliked", "bad", "is_bad", "flagged", "is_flagged"),
        *("is_rejected", "disapproved", "is_disapproved", "hallucination", "is_hallucination"),
        *("hallucinated", "is_hallucinated", "unhelpful", "unsafe", "is_unsafe", "invalid", "is_invalid"),
        *("incorrect", "is_incorrect", "undesirable", "toxic", "is_toxic", "harmful", "is_harmful"),
    )
)
"""Columns that speak against the answer when they are true."""
RATINGS = {
    **dict.fromkeys(("rating", "ratings", "stars", "user_rating", "overall_rating"), 5.0),
    **dict.fromkeys(("score", "scores", "overall_score", "quality", "quality_score", "answer_score"), 1.0),
    **dict.fromkeys(("reward", "grade", "helpfulness", "correctness"), 1.0),
}
"""Columns of numbers, with the least that their scale can reach."""
_JUDGING = SIGNS | INVERSE | RATINGS.keys()
SCALES = (1.0, 5.0, 10.0, 100.0)
"""Where scales of ratings end."""
_BAD = frozenset(
    (
        *("false", "no", "n", "f", "bad", "poor", "negative", "neg", "rejected", "reject", "undesirable"),
        *("dislike", "disliked", "down", "thumbs_down", "thumbsdown", "downvote", "incorrect", "wrong"),
        *("very_bad", "very_poor", "terrible", "awful", "horrible", "unhelpful", "unsafe"),
        *("unacceptable", "unsatisfactory", "invalid", "fail", "failed", "not_helpful", "👎"),
    )
)
_LOW = frozenset(("low", "very_low", "lowest"))
"""Words that say bad where a rating stands; elsewhere they may be a class."""
_OF = re.compile(r"([-+]?\d+(?:\.\d+)?)\s*(?:/|out of|of)\s*(\d+(?:\.\d+)?)", re.ASCII)
"""A rating with its scale: 1/5, 2 out of 10."""
_STARS = re.compile(r"([-+]?\d+(?:\.\d+)?)\s*(?:stars?|points?)|([★⭐]+)[☆\s]*", re.ASCII)
_TONES = re.compile("[\U0001f3fb-\U0001f3ff\ufe0f]")
"""Colours of skin, and the sign that asks for a picture: they do not change what an emoji says."""
_TRUE = frozenset(["true", "yes", "y", "t", "1"])


class Verdict(NamedTuple):
    """What speaks against an answer."""

    column: str
    said: str


def judges(name: str) -> bool:
    """Whether a column of this name says how good an answer is."""
    return _plain(name) in _JUDGING or _side(name) is not None


class Verdicts:
    """Judges the rows of one file. Ratings are read against the scale that the whole file shows: look at all first."""

    def __init__(self) -> None:
        self._tops: dict[str, float] = {}

    def look(self, row: Mapping[str, Any]) -> None:
        """Take in the ratings of a row."""
        for name, said in row.items():
            if _plain(name) in RATINGS and (number := _number(said)) is not None:
                self._tops[name] = max(self._tops.get(name, 0.0), number, _scale_of(said))

    def against(self, row: Mapping[str, Any]) -> Verdict | None:
        """What says that a row's answer is bad; None if nothing does.

        A preference pair is judged only by ratings of both answers, which must not turn it round.
        """
        if ("chosen" in row and "rejected" in row) or "preferred_output" in row:
            return _turned(row)
        classes = not _ANSWERED & row.keys()
        for name, said in row.items():
            if judges(name) and self._bad(name, said, classes=classes):
                return Verdict(name, _shown(said) + ("" if _number(said) is None else self._scale(name)))
        return None

    def _bad(self, name: str, said: Any, *, classes: bool) -> bool:
        """``classes``: the row is a plain text, whose label is as likely the class of a text as a verdict on it."""
        key, number = _plain(name), _number(said)
        word = _plain(said) if isinstance(said, str) else ""
        if key in INVERSE:
            return said is True or word in _TRUE or (number is not None and number > 0)
        if (
            said is False
            or word in ("false", "f")
            or (word in _BAD and not classes)
            or (word in _LOW and key in RATINGS)
        ):
            return True
        if number is None or (classes and key not in RATINGS):
            return False
        return number <= 0 if key in SIGNS else 2 * number < self._top(name)

    def _top(self, name: str) -> float:
        seen = max(self._tops.get(name, 0.0), RATINGS[_plain(name)])
        return next((end for end in SCALES if end >= seen), seen)

    def _scale(self, name: str) -> str:
        return f" (of {self._top(name):g})" if _plain(name) in RATINGS else ""


_ANSWERED = frozenset(
    (
        *("messages", "prompt", "completion", "conversations", "instruction", "output", "answer"),
        *("response",),
    )
)


def _turned(row: Mapping[str, Any]) -> Verdict | None:
    """The rating of a pair's chosen answer that is below the same rating of the rejected one."""
    sides: dict[tuple[str, str], tuple[str, float]] = {}
    for name, said in row.items():
        if (side := _side(name)) is not None and (number := _number(said)) is not None:
            sides[side] = name, number
    for (answer, rating), (name, number) in sides.items():
        other = sides.get(("rejected", rating)) if answer == "chosen" else None
        if other is not None and number < other[1]:
            return Verdict(name, f"{number:g}, below {other[0][:40]} with {other[1]:g}")
    return None


def _side(name: str) -> tuple[str, str] | None:
    """The answer of a pair and the rating that a column is of: score_chosen, rejected-rating."""
    for answer in ("chosen", "rejected"):
        rating = _plain(name).removeprefix(f"{answer}_").removesuffix(f"_{answer}")
        if rating != _plain(name) and rating in RATINGS:
            return answer, rating
    return None


def _plain(name: str) -> str:
    return _TONES.sub("", str(name)).strip().lower().replace("-", "_").replace(" ", "_")


def _number(said: Any) -> float | None:
    """A number, or a text that spells one; None for anything else."""
    if isinstance(said, bool) or not isinstance(said, int | float | str):
        return None
    if isinstance(said, str):
        text = _TONES.sub("", said).strip().lower()
        if found := _OF.fullmatch(text):
            said = found[1]
        elif found := _STARS.fullmatch(text):
            said = found[1] or len(found[2])
    try:
        number = float(said)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _scale_of(said: Any) -> float:
    """The end of the scale that a rating names: 5 of ``1/5``; 0 for none."""
    found = _OF.fullmatch(said.strip().lower()) if isinstance(said, str) else None
    return float(found[2]) if found else 0.0


def _shown(said: Any) -> str:
    return {True: "true", False: "false"}[said] if isinstance(said, bool) else str(said)[:40]
