"""API keys as text: ``lmx_<keyid>_<secret>``."""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass, field
from typing import Self

SECRET_BYTES = 32
LEAST_SECRET = 43
"""Characters that 32 random bytes take in base64."""
LEAST_DISTINCT = 8
"""Different characters that a secret has: 43 random ones have more, ``aaaa...`` and ``0123012301...`` have not."""
FORM = "lmx_KEYID_SECRET: an id of 1 to 32 of a-z, 0-9 and '-', and a random secret of 43 to 128 of A-Z, a-z, 0-9, '-'"
"""The form of a key for those who make one themselves."""

_KEY = re.compile(rf"lmx_([a-z0-9-]{{1,32}})_([A-Za-z0-9-]{{{LEAST_SECRET},128}})", re.ASCII)


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key as its holder has it. Only ``id`` and ``digest`` are ever stored or logged."""

    id: str
    secret: str = field(repr=False)

    @classmethod
    def generate(cls) -> Self:
        """A new key with a secret of 256 random bits."""
        return cls(secrets.token_hex(6), secrets.token_hex(SECRET_BYTES))

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """The key that ``text`` is; None where it has not the form of one."""
        found = _KEY.fullmatch(text)
        return cls(*found.groups()) if found else None

    @property
    def text(self) -> str:
        """What its holder sends."""
        return f"lmx_{self.id}_{self.secret}"

    @property
    def digest(self) -> str:
        """SHA-256 of the secret in hexadecimal: enough for a secret of 256 random bits, which nobody can guess."""
        return hashlib.sha256(self.secret.encode()).hexdigest()

    @property
    def guessable(self) -> bool:
        """Whether the secret has so few different characters that nobody drew it at random."""
        return len(set(self.secret)) < LEAST_DISTINCT
