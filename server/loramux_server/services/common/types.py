"""What answers of several services hold: files of an upload, pages of a list."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class FileSpec:
    """A file of an adapter folder. An empty ``sha256`` is not checked."""

    name: str
    size: int
    sha256: str = ""


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """A page of a list; ``next_page_token`` is empty on the last one."""

    items: tuple[T, ...]
    next_page_token: str = ""
