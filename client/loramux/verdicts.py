"""Columns that say how good an answer is: one that is called bad must not be learned as a good one.

KTO's ``label``, thumbs, ratings and scores. Shared by the converter and the server, so it takes plain values only.
"""

from __future__ import annotations

import math
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
SCALES = (1.0, 5.0, 10.0, 100.0)
"""Where scales of ratings end."""
_BAD = frozenset(
    (
        *("false", "no", "n", "f", "bad", "poor", "negative", "neg", "rejected", "reject", "undesirable"),
        *("dislike", "disliked", "down", "thumbs_down", "thumbsdown", "downvote", "incorrect", "wrong"),
        *("👎",),
    )
)
_TRUE = frozenset(["true", "yes", "y", "t", "1"])


class Verdict(NamedTuple):
    """What speaks against an answer."""

    column: str
    said: str


def judges(name: str) -> bool:
    """Whether a column of this name says how good an answer is."""
    return _plain(name) in SIGNS | INVERSE | RATINGS.keys()


class Verdicts:
    """Judges the rows of one file. Ratings are read against the scale that the whole file shows: look at all first."""

    def __init__(self) -> None:
        self._tops: dict[str, float] = {}

    def look(self, row: Mapping[str, Any]) -> None:
        """Take in the ratings of a row."""
        for name, said in row.items():
            if _plain(name) in RATINGS and (number := _number(said)) is not None:
                self._tops[name] = max(self._tops.get(name, 0.0), number)

    def against(self, row: Mapping[str, Any]) -> Verdict | None:
        """What says that a row's answer is bad; None if nothing does. Preference pairs are not judged."""
        if "chosen" in row or "preferred_output" in row:
            return None
        classes = not _ANSWERED & row.keys()
        for name, said in row.items():
            if judges(name) and self._bad(name, said, classes=classes):
                return Verdict(name, _shown(said) + self._scale(name))
        return None

    def _bad(self, name: str, said: Any, *, classes: bool) -> bool:
        """``classes``: the row is a plain text, whose label is as likely the class of a text as a verdict on it."""
        key, number = _plain(name), _number(said)
        word = _plain(said) if isinstance(said, str) else ""
        if key in INVERSE:
            return said is True or word in _TRUE or (number is not None and number > 0)
        if said is False or word in ("false", "f") or (word in _BAD and not classes):
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


def _plain(name: str) -> str:
    return str(name).strip().lower().replace("-", "_").replace(" ", "_")


def _number(said: Any) -> float | None:
    """A number, or a text that spells one; None for anything else."""
    if isinstance(said, bool) or not isinstance(said, int | float | str):
        return None
    try:
        number = float(said)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _shown(said: Any) -> str:
    return {True: "true", False: "false"}[said] if isinstance(said, bool) else str(said)[:40]
