"""What a setting is made of: the types of values, how they are read, and the declaration of a leaf."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, cast

from pydantic import AfterValidator, BeforeValidator, ByteSize, Field, PlainSerializer
from pydantic_settings import NoDecode

from ..core.callers.san import SanPattern
from ..core.errors import invalid_field
from ..host.home import expand, home
from ..host.urls import why_no_endpoint, why_not_trusted

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(\[[0-9a-f:]+\]|[a-z0-9._-]+)(:[0-9]{1,5})?", re.ASCII)
_HOST_NAME = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*", re.ASCII)


class Address(NamedTuple):
    """A host and a TCP port; port 0 lets the system choose."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read ``host:port`` or ``[v6]:port``. Raises ValueError."""
        host, colon, port = text.rpartition(":")
        if not colon or not host or not (port.isascii() and port.isdigit() and len(port) <= 5 and int(port) <= 65535):
            raise ValueError("must be HOST:PORT, for example 127.0.0.1:50051 or [::1]:50051")
        bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
        if ":" in bare and bare == host:
            raise ValueError("an IPv6 address needs brackets, for example [::1]:50051")
        return cls(bare, int(port))


def _address(value: object) -> Address:
    if isinstance(value, Address):
        return value
    if not isinstance(value, str):
        raise ValueError("must be HOST:PORT, for example 127.0.0.1:50051")
    return Address.parse(value)


def _optional_address(value: object) -> Address | None:
    return None if value is None or value == "off" else _address(value)


def state_home() -> Path:
    """Where the state goes unless a setting says so. Raises INVALID_ARGUMENT where there is no such place."""
    named = os.environ.get("XDG_STATE_HOME")
    place = Path(named) if named else (folder := home()) and folder / ".local" / "state"
    if place is None:
        raise invalid_field("--state-dir", "must be given: there is no home folder here (HOME is not set)")
    return place / "loramux"


def _path(value: object) -> object:
    if value == "":
        raise ValueError("must not be empty")
    if isinstance(value, str) and "\0" in value:
        raise ValueError("must be a path, which has no null character")
    return expand(value) if isinstance(value, str) else value


def _san_pattern(text: str) -> str:
    SanPattern.parse(text)
    return text


def _trusted(url: str) -> str:
    if why := why_not_trusted(url):
        raise ValueError(why)
    return url


def _otlp(url: str) -> str:
    if why := why_no_endpoint(url):
        raise ValueError(why)
    return url


def _words(value: object) -> object:
    """Commas divide the words of a variable; flags are given again, and TOML has lists."""
    return [word.strip() for word in value.split(",") if word.strip()] if isinstance(value, str) else value


def _origin(text: str) -> str:
    if not _ORIGIN.fullmatch(text):
        raise ValueError("must be the exact origin of a site, such as https://chat.example.org, without a path or *")
    return text


def _host(text: str) -> str:
    if not _HOST_NAME.fullmatch(text):
        raise ValueError("must be a host's name without a port, such as gpu.example.org")
    return text.lower()


class Range(NamedTuple):
    """The least and the most of something that may change."""

    least: int
    most: int

    def __str__(self) -> str:
        return f"{self.least}..{self.most}"


def _range(value: object) -> object:
    found = re.fullmatch(r"([0-9]{1,5})\.\.([0-9]{1,5})", value, re.ASCII) if isinstance(value, str) else None
    if found is None:
        return value
    least, most = int(found[1]), int(found[2])
    if not 1 <= least <= most:
        raise ValueError("must be MIN..MAX with 1 <= MIN <= MAX, for example 1..4")
    return Range(least, most)


def _is_range(value: object) -> Range:
    if not isinstance(value, Range):
        raise ValueError("must be MIN..MAX, for example 1..4")
    return value


_as_text = PlainSerializer(str, return_type=str)
# NoDecode: pydantic-settings would read a tuple's environment variable as JSON.
Origins = Annotated[tuple[Annotated[str, AfterValidator(_origin)], ...], NoDecode, BeforeValidator(_words)]
HostNames = Annotated[tuple[Annotated[str, AfterValidator(_host)], ...], NoDecode, BeforeValidator(_words)]
ListenAddress = Annotated[Address, NoDecode, BeforeValidator(_address), _as_text]
OptionalAddress = Annotated[
    Address | None, NoDecode, BeforeValidator(_optional_address), PlainSerializer(lambda a: str(a) if a else "off")
]
Replicas = Annotated[Range, NoDecode, BeforeValidator(lambda value: _is_range(_range(value))), _as_text]
PatternOfSan = Annotated[str, AfterValidator(_san_pattern)]
OtlpUrl = Annotated[str, AfterValidator(_otlp)]
TrustedUrl = Annotated[str, AfterValidator(_trusted)]
Size = Annotated[ByteSize, Field(gt=0)]
LocalPath = Annotated[Path, BeforeValidator(_path), _as_text]
PathOrOff = Annotated[Path | Literal["off"], BeforeValidator(lambda v: v if v == "off" else _path(v)), _as_text]


def setting(default: Any, group: str, metavar: str, description: str, **limits: Any) -> Any:
    """A leaf of the tree: its default, its place and placeholder in the help, its sentence, its limits."""
    kind = "default_factory" if callable(default) else "default"
    extra = {"group": group, "metavar": metavar}
    return Field(**{kind: default}, description=description, json_schema_extra=cast(Any, extra), **limits)
