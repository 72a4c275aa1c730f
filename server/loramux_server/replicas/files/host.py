"""What a replica keeps on its host where it shares no folder with the front: base, copies of adapters, jobs.

A folder of the host has the base, and below it each replica takes the first place that no other one has. So copies
survive a replica, and its successor on the host finds them.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import ExitStack, aclosing, suppress
from dataclasses import replace
from pathlib import Path

from ...core.backend import ProfileCommand
from ...core.errors import Error, is_damage
from ...core.jobs import RowsFile, TrainCommand, TrainEvent, TrainEventType
from ...core.settings import EngineSettings
from ...core.types import COMPUTED_WITH
from ...engine.transport.client import EngineClient
from ...engine.transport.protocol import Command, Output, PinCommand
from ...services.common.shielding import to_the_end
from ...store.blobs.files import delete_path
from ...store.checkpoint_places import checkpoint_name
from ...store.state_dir import StateDir
from ...store.store import blobs_of
from ..commands import digests_of
from .own import RESULT, ROWS, Crossing, OwnFiles, copy_stored_file, copy_stored_folder

WEIGHTS = ".safetensors"


class HostFiles:
    """One replica's place in the folder of its host. It is free again when the process ends."""

    def __init__(self, own: OwnFiles) -> None:
        root = Path(own.folder) / own.identity
        self._state = _free_place(root)
        self._blobs = blobs_of(self._state, own.identity, own.blobs_url, own.cache_bytes)
        for left in self._state.jobs.iterdir():
            delete_path(left)
        self._pinned = ExitStack()

    def engine(self, settings: EngineSettings) -> EngineSettings:
        """The settings of an engine that reads and writes here alone."""
        place = str(self._state.path)
        return replace(settings, state_dir=place, folders=(place,), blobs=str(self._blobs.reader.folder))

    async def outputs(
        self, backend: EngineClient, command: Command, files: Sequence[Crossing]
    ) -> AsyncGenerator[Output | Crossing]:
        """Those of a command, once what it reads is here. What it has written comes before the output that says so.

        Raises what the engine says, and DATA_LOSS for an adapter whose files are gone or not what was stored.
        """
        with ExitStack() as held:
            # To the end: what is held is let go of, even when the caller leaves meanwhile.
            here = await to_the_end(asyncio.to_thread(self._bring, command, files, held))
            try:
                async with aclosing(backend.outputs(here)) as outputs:
                    async for output in outputs:
                        if isinstance(here, TrainCommand | ProfileCommand):
                            written = await to_the_end(asyncio.to_thread(self._written, here, output))
                            if written is not None:
                                yield written
                        yield output
            except Error as error:
                if is_damage(error):
                    await asyncio.to_thread(self._recheck, here)
                raise

    def texts(self, base: str) -> str:
        """Store what the front reads of the base, all but its weights; gives the folder's digest. Blocking."""
        folder = self._state.new_tmp("texts")
        try:
            for file in Path(base).iterdir():
                if file.is_file() and file.suffix != WEIGHTS:
                    (folder / file.name).write_bytes(file.read_bytes())
            return self._blobs.put_folder(folder).digest
        finally:
            delete_path(folder)

    def _written(self, command: TrainCommand | ProfileCommand, output: Output) -> Crossing | None:
        """What the engine has written by the time of this output, stored for the front; blocking."""
        match command, output.payload:
            case TrainCommand(), TrainEvent(type=TrainEventType.CHECKPOINT, step=step):
                name = checkpoint_name(step)
                with suppress(FileNotFoundError):  # a newer one took its place
                    return Crossing(name, self._blobs.put_folder(Path(command.checkpoint_dir) / name).digest)
            case TrainCommand(), _ if output.done and output.failure is None:
                return Crossing(RESULT, self._blobs.put_folder(Path(command.output)).digest)
            case ProfileCommand(), _ if output.done and output.failure is None:
                return Crossing(RESULT, self._blobs.put_file(Path(command.output)).digest)
        return None

    def _recheck(self, command: Command) -> None:
        """After the engine found damage: bring copies that are damaged anew; blocking."""
        for digest in digests_of(command):
            with suppress(Error):  # the front looks at what is stored, and tells
                self._blobs.recheck(digest, COMPUTED_WITH)

    def _bring(self, command: Command, files: Sequence[Crossing], held: ExitStack) -> Command:
        held.enter_context(self._blobs.holding(digests_of(command)))
        match command:
            case PinCommand():
                before, self._pinned = self._pinned, held.pop_all()
                before.close()
            case TrainCommand():
                return self._bring_job(command, files, held)
            case ProfileCommand():
                folder = self._state.new_tmp("profile")
                held.callback(delete_path, folder)
                return replace(command, output=str(folder / os.path.basename(command.output)))
        return command

    def _bring_job(self, command: TrainCommand, files: Sequence[Crossing], held: ExitStack) -> TrainCommand:
        attempt = uuid.uuid4().hex
        place, result = self._state.job_folder(attempt), self._state.new_tmp("result")
        # Gone at once for an engine that still writes there: nobody would read it.
        held.callback(self._state.drop_job_folder, attempt)
        held.callback(delete_path, result)
        rows = os.path.basename(command.rows.path)
        for file in files:
            if file.name == ROWS:
                copy_stored_file(self._blobs, file.digest, place / rows)
            else:
                copy_stored_folder(self._blobs, file.digest, place / file.name)
        return replace(
            command,
            rows=RowsFile(f"{attempt}/{rows}", command.rows.sha256),
            output=str(result / RESULT),
            checkpoint_dir=str(place) if command.checkpoint_dir else "",
        )


def _free_place(root: Path) -> StateDir:
    (root / "base").mkdir(parents=True, exist_ok=True)
    for number in itertools.count():
        place = root / f"replica-{number}"
        place.mkdir(exist_ok=True)
        with suppress(FileExistsError):
            (place / "base").symlink_to(root / "base", target_is_directory=True)
        try:
            return StateDir.open(place)
        except Error as error:
            if error.reason != "STATE_DIR_LOCKED":
                raise
    raise AssertionError("unreachable")
