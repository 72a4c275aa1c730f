"""The files of the console: read once, and the same for everybody, since they hold no data.

What the page shows comes from the door's other operations, with the key of whoever looks at it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..exchanges.exchange import Exchange

STATIC = Path(__file__).parent / "static"
TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
"""Files of other kinds, such as licences, are texts."""
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types lit-html",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",
}
"""Nothing comes from or goes to another origin, nothing frames the page, and no text becomes code or markup.

Browsers keep the files, and ask each time whether these have changed.
"""


@dataclass(frozen=True, slots=True)
class File:
    """One of the files as it is sent."""

    content: bytes
    content_type: str
    tag: str
    """Its entity tag, which follows from the content."""

    @classmethod
    def read(cls, path: Path) -> File:
        content = path.read_bytes()
        kind = TYPES.get(path.suffix, "text/plain")
        return cls(content, f"{kind}; charset=utf-8", f'"{hashlib.sha256(content).hexdigest()[:32]}"')


class ConsoleFiles:
    """Answers GET and HEAD of the page at ``/`` and of its files below ``/console/``."""

    def __init__(self) -> None:
        self._files = {f"/console/{path.relative_to(STATIC).as_posix()}": File.read(path) for path in _files()}
        self._files["/"] = self._files.pop("/console/index.html")

    def __iter__(self) -> Iterator[str]:
        """The paths."""
        return iter(self._files)

    async def send(self, exchange: Exchange) -> None:
        """The file at the path, or that it has not changed."""
        file = self._files[exchange.request.url.path]
        exchange.headers |= {**HEADERS, "etag": file.tag}
        known = exchange.request_headers.get("if-none-match", "")
        if file.tag in (tag.strip().removeprefix("W/") for tag in known.split(",")):
            await exchange.send_nothing(304)
        else:
            await exchange.send_bytes(file.content, file.content_type)


def _files() -> Iterator[Path]:
    return (path for path in sorted(STATIC.rglob("*")) if path.is_file() and path.suffix != ".md")
