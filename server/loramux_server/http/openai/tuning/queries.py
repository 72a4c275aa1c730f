"""What the lists of files, jobs and events are asked with, and the shape of their answers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field
from starlette.datastructures import QueryParams

from ....core.errors import invalid_field
from ...bodies.fields import Strict, read

MOST_FILES, MOST_ITEMS = 10_000, 1000
_METADATA = re.compile(r"metadata\[([^\[\]]+)\]")
"""One level deep: ``metadata[a][b]`` is a value of metadata that no job can have."""


class FilesQuery(Strict):
    """``GET /v1/files``."""

    after: str = ""
    limit: Annotated[int, Field(ge=1, le=MOST_FILES)] = MOST_FILES
    order: Literal["asc", "desc"] = "desc"
    purpose: str = ""


class ItemsQuery(Strict):
    """A page of jobs or checkpoints."""

    after: str = ""
    limit: Annotated[int, Field(ge=1, le=MOST_ITEMS)] = 20


class EventsQuery(ItemsQuery):
    """A page of events, or a stream of them."""

    stream: bool = False


class JobsQuery(ItemsQuery):
    """``metadata`` None: jobs with any; empty: jobs with none."""

    metadata: dict[str, str] | None = None

    def wants(self, metadata: dict[str, str]) -> bool:
        """Whether a job with this ``metadata`` is asked for."""
        if self.metadata is None:
            return True
        return not metadata if not self.metadata else self.metadata.items() <= metadata.items()


def given(parameters: QueryParams) -> dict[str, Any]:
    """The parameters of a query by name. Raises INVALID_ARGUMENT for one that is given twice."""
    found: dict[str, Any] = {}
    for name, value in parameters.multi_items():
        if name in found:
            raise invalid_field(name, "is given twice")
        found[name] = value
    return found


def jobs_query(parameters: QueryParams) -> JobsQuery:
    """The query of a list of jobs, where ``metadata[key]=value`` filters and ``metadata=null`` asks for none."""
    plain = given(parameters)
    metadata = {found[1]: plain.pop(name) for name in list(plain) if (found := _METADATA.fullmatch(name))}
    if "metadata" in plain:
        if plain["metadata"] != "null" or metadata:
            raise invalid_field("metadata", "must be metadata[key]=value, or metadata=null alone")
        plain["metadata"] = {}
    elif metadata:
        plain["metadata"] = metadata
    return read(JobsQuery, plain)


def listed(data: Sequence[dict[str, Any]], has_more: bool) -> dict[str, Any]:
    """A list of jobs or events as OpenAI has it."""
    return {"object": "list", "data": list(data), "has_more": has_more}


def listed_with_ids(data: Sequence[dict[str, Any]], has_more: bool) -> dict[str, Any]:
    """A list of files or checkpoints, which also names the first and the last of them."""
    first, last = (data[0]["id"], data[-1]["id"]) if data else (None, None)
    return {**listed(data, has_more), "first_id": first, "last_id": last}
