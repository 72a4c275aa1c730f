"""The rows of a job as they were tokenised when it first ran, kept in its folder for later attempts.

A template may show the date, a base's files may change, and names may come to mean other versions: none of that makes
a job that goes on another one.
"""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from ...core.errors import Error
from ...host.files import read_regular, storage_errors, sync_folder, write_durable
from ...telemetry.logs import get_logger
from .training_data import JobData

log = get_logger(__name__)

FILE = "rows.msgpack"
FORMAT = 1
_DIGEST_BYTES = 32


@dataclass(frozen=True, slots=True)
class Kept:
    """What the file holds after the SHA-256 of all that follows."""

    format: int
    base: str
    """Fingerprint of the base that the rows were tokenised for."""
    data: JobData


def kept_or_made(folder: Path, base: str, make: Callable[[], JobData]) -> JobData:
    """The rows in ``folder``; where there are none for this ``base``, or damaged ones, those of ``make``, kept now.

    Blocking. Raises what ``make`` raises, and RESOURCE_EXHAUSTED or UNAVAILABLE when they cannot be kept.
    """
    if (kept := _read(folder / FILE, base)) is not None:
        return kept
    data = make()
    content = msgspec.msgpack.encode(Kept(FORMAT, base, data))
    staged = folder / f"rows-{uuid.uuid4().hex}"
    with storage_errors("cannot keep the rows of a job"):
        try:
            write_durable(staged, hashlib.sha256(content).digest() + content)
            os.replace(staged, folder / FILE)
            sync_folder(folder)
        finally:
            staged.unlink(missing_ok=True)
    return data


def _read(path: Path, base: str) -> JobData | None:
    try:
        stored = read_regular(path)
        digest, content = stored[:_DIGEST_BYTES], stored[_DIGEST_BYTES:]
        if hashlib.sha256(content).digest() != digest:
            raise ValueError("they are damaged")
        kept = msgspec.msgpack.decode(content, type=Kept)
        if (kept.format, kept.base) != (FORMAT, base):
            raise ValueError("they were made for another base or by another version")
    except FileNotFoundError:
        return None
    except (Error, OSError, ValueError, msgspec.MsgspecError) as error:
        log.warning("the kept rows of a job cannot be used: they are made again", error=str(error))
        return None
    return kept.data
