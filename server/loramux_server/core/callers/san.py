"""The tenant that a client's certificate names, in one of its subject alternative names."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

PLACEHOLDER = "{tenant}"
_LABEL = r"(?P<tenant>[a-z0-9][a-z0-9_-]{0,62})"
_SEGMENT = r"(?P<tenant>[a-z0-9][a-z0-9._-]{0,63})"


@dataclass(frozen=True, slots=True)
class SanPattern:
    """Which names name a tenant: a URI or a DNS name in which ``{tenant}`` stands for its name.

    In a DNS name the tenant is one label, in a URI what lies between two literal parts. Names of another kind never
    match, so that no DNS name can pass for a URI.
    """

    kind: Literal["DNS", "URI"]
    expression: re.Pattern[str]

    @classmethod
    def parse(cls, text: str) -> SanPattern:
        """Read a pattern. Raises ValueError."""
        if text.count(PLACEHOLDER) != 1:
            raise ValueError(f"must hold {PLACEHOLDER} once, as in spiffe://example.org/tenant/{PLACEHOLDER}")
        if not (text.isascii() and text.isprintable() and " " not in text):
            raise ValueError("must be printable ASCII without spaces")
        is_uri = "://" in text
        before, after = map(re.escape, (text if is_uri else text.lower()).split(PLACEHOLDER))
        return cls("URI" if is_uri else "DNS", re.compile(before + (_SEGMENT if is_uri else _LABEL) + after))

    def tenants(self, names: Iterable[str]) -> frozenset[str]:
        """Tenants that are named in ``names``, each ``KIND:NAME`` such as ``DNS:acme.tenants.example.org``."""
        found = set()
        for kind, _, name in (name.partition(":") for name in names):
            if kind == self.kind and (match := self.expression.fullmatch(name if kind == "URI" else name.lower())):
                found.add(match["tenant"])
        return frozenset(found)
