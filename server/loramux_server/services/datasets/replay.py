"""General rows that are mixed into a job's own, so that an adapter of facts keeps the base's general behaviour."""

from __future__ import annotations

import random
import shutil
from dataclasses import replace

from ...core.errors import Code, Error, FieldViolation
from ...data.dataset import Dataset, counted
from ...host.shipped import shipped
from ...store.store import Store

DEFAULT = "default"
_SHIPPED = "data/messages/replay.jsonl"


def find_replay(store: Store, replay: str, tenant: str) -> str:
    """The id of the dataset that ``replay`` names; blocking.

    ``default`` becomes a dataset of the tenant's, so that a job keeps its rows when the server is replaced by another.
    Raises NOT_FOUND, FAILED_PRECONDITION when this server was installed without its data.
    """
    if replay != DEFAULT:
        return store.datasets.get(replay, tenant).id
    source = shipped(_SHIPPED)
    if source is None:
        raise Error(
            Code.FAILED_PRECONDITION,
            "this server was installed without its replay rows; give rows of your own as replay, or 0 as replay_rows",
            reason="NO_REPLAY_ROWS",
            violations=[
                FieldViolation("replay", "is default, but this server has no replay rows of its own; name a dataset")
            ],
        )
    folder = store.state.new_tmp("replay")
    try:
        shutil.copyfile(source, folder / "data")
        return store.datasets.put(folder / "data", tenant, filename=source.name).id
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def draw(replay: Dataset, rows: int, seed: int) -> Dataset:
    """``rows`` of the replay rows, or all when there are fewer; the same for the same seed.

    They are learned on the bare base unless they name a stack: it is the adapter alone that has to stay out of the way
    of what the base knows.
    """
    lines = sorted({example.line for example in replay.examples})
    drawn = set(random.Random(f"{seed}/replay").sample(lines, min(rows, len(lines))))
    examples = tuple(
        example if example.on_top_of is not None else replace(example, on_top_of=())
        for example in replay.examples
        if example.line in drawn
    )
    return Dataset(examples, counted(examples, replay.report))
