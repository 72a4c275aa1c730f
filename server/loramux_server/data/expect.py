"""What an answer must say to count as right, and whether it does.

Compared is text in Unicode's compatibility form (NFKC), with runs of white space as one space, straight quotation
marks and hyphens for the typographic ones, and no invisible format characters. Case counts only where a row says so.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

FIELDS = frozenset({"expect", "expect_match", "expect_mode", "expect_case"})
"""Fields of a row that say what counts."""
MAX_TEXTS, MAX_CHARS = 64, 4096
_MATCHES = {"any": False, "all": True}
_MODES = {"contained": False, "contains": False, "exact": True}
_SAME = str.maketrans({**dict.fromkeys("‘’‚‛ʼ′", "'"), **dict.fromkeys("“”„‟″", '"'), **dict.fromkeys("‐‑‒–—―−", "-")})
# Scripts without spaces between words have no borders that could be looked for.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
_LETTER = rf"[^\W{_UNSPACED}\U00020000-\U0003ffff]"


@dataclass(frozen=True, slots=True)
class Expected:
    """Expected texts: any of them, or ``every`` one, must be in an answer (``exact``: must be the whole answer)."""

    texts: tuple[str, ...]
    every: bool = False
    exact: bool = False
    case: bool = False
    """Whether upper and lower case differ."""

    def right(self, answer: str) -> bool:
        """Whether an answer counts as right."""
        if self.exact:
            return self.equals(answer)
        said = plain(answer, self.case)
        found = (_words(plain(text, self.case)).search(said) is not None for text in self.texts)
        return all(found) if self.every else any(found)

    def equals(self, answer: str) -> bool:
        """Whether an answer is one of the texts and nothing else."""
        said = plain(answer, self.case)
        return any(said == plain(text, self.case) for text in self.texts)


def plain(text: str, case: bool = True) -> str:
    """A text in the form that is compared; in lower case unless ``case``."""
    text = unicodedata.normalize("NFKC", text).translate(_SAME)
    text = "".join(char for char in text if unicodedata.category(char) != "Cf")
    return " ".join((text if case else text.casefold()).split())


@lru_cache(maxsize=1024)
def _words(text: str) -> re.Pattern[str]:
    """Finds ``text`` as words of its own: neither ``$4`` nor ``4`` is in ``$4.50``, nor ``art`` in ``start``."""
    before = rf"(?<!{_LETTER})(?<!\$)(?<!\d[.,:])" if re.match(rf"{_LETTER}|\$", text) else ""
    after = rf"(?!{_LETTER})(?![.,:]\d)" if re.search(rf"{_LETTER}\Z", text) else ""
    return re.compile(before + re.escape(text) + after)


def expected_of(value: Mapping[str, Any], problems: list[str]) -> Expected | None:
    """The expected texts of a row; None where it names none. What is wrong goes to ``problems``."""
    texts = value.get("expect")
    if texts is None:
        alone = sorted(FIELDS & value.keys() - {"expect"})
        problems += [f"{name} is given without expect; give the expected texts in expect" for name in alone]
        return None
    before = len(problems)
    texts = [texts] if isinstance(texts, str) else texts
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        problems.append("expect must be a string or a list of at least one string")
    elif len(texts) > MAX_TEXTS or any(len(text) > MAX_CHARS for text in texts):
        problems.append(f"expect may have at most {MAX_TEXTS} texts of at most {MAX_CHARS} characters each")
    elif not all(map(plain, texts)):
        problems.append("expect has an empty text; leave it out")
    every = _word(value, "expect_match", _MATCHES, problems)
    exact = _word(value, "expect_mode", _MODES, problems)
    case = value.get("expect_case")
    if not isinstance(case, bool | None):
        problems.append("expect_case must be true or false")
    if len(problems) > before:
        return None
    if every and exact and len({plain(text, bool(case)) for text in texts}) > 1:
        problems.append("expect_match is all and expect_mode exact, but no answer can be several texts at once")
        return None
    return Expected(tuple(texts), every, exact, bool(case))


def _word(value: Mapping[str, Any], field: str, words: Mapping[str, bool], problems: list[str]) -> bool:
    """The value of a field that is one of ``words``; False where it is missing."""
    word = value.get(field)
    if word is None:
        return False
    if not isinstance(word, str) or word not in words:
        problems.append(f"{field} must be {' or '.join(repr(w) for w in words if w != 'contains')}")
        return False
    return words[word]
