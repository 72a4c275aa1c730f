"""Where a version comes from, as a tree."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ...errors import NotFound
from ...types import AdapterVersion
from ..common import plain

MAX_DEPTH = 8

Fetch = Callable[[str], AdapterVersion]
"""Gives a version by reference; raises NotFound for one that is deleted."""


def lineage(version: AdapterVersion, fetch: Fetch) -> Iterator[str]:
    """Lines of the tree: what the version is made of below it, each with what that is made of in turn.

    A version that comes twice is opened only the first time.
    """
    yield plain(_title(version))
    yield from _branches(version, fetch, "", {version.ref}, MAX_DEPTH)


def _branches(version: AdapterVersion, fetch: Fetch, indent: str, seen: set[str], depth: int) -> Iterator[str]:
    sources = list(_sources(version))
    for i, (how, ref) in enumerate(sources):
        last = i == len(sources) - 1
        found, note = None, ""
        if ref in seen:
            note = " (above)"
        elif ref and depth == 0:
            note = " (and what it is made of)"
        elif ref:
            found = _find(ref, fetch)
            note = "" if found else " (deleted)"
        text = f"{how} {_title(found) if found else ref}{note}".rstrip()
        yield plain(f"{indent}{'└─' if last else '├─'} {text}")
        seen.add(ref)
        if found is not None:
            yield from _branches(found, fetch, indent + ("   " if last else "│  "), seen, depth - 1)


def _sources(version: AdapterVersion) -> Iterator[tuple[str, str]]:
    """(how, reference) of all that a version directly comes from; an empty reference is a leaf."""
    if version.composed:
        for item in version.composed.stack:
            yield f"{item.weight:g} ×", item.adapter
    if version.parent:
        yield "continues", version.parent
    for stack in version.trained_on:
        for item in stack:
            yield "on top of" + ("" if item.weight == 1 else f" {item.weight:g} ×"), item.adapter
    if version.dataset_digest:
        yield f"data {version.dataset_digest[:12]}", ""


def _title(version: AdapterVersion) -> str:
    if version.composed:
        return f"{version.ref} merged by {version.composed.method}, error {version.composed.error:.3g}"
    return (
        f"{version.ref} trained by {version.job_id}"
        if version.job_id
        else f"{version.ref} {'shared' if version.shared else 'uploaded'}"
    )


def _find(ref: str, fetch: Fetch) -> AdapterVersion | None:
    try:
        return fetch(ref)
    except NotFound:
        return None
