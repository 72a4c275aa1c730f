"""What the front sends to and takes from replicas that share no folder with it."""

from __future__ import annotations

import uuid
from dataclasses import replace
from pathlib import Path

from ...core.backend import EngineInfo, ProfileCommand
from ...core.jobs import TrainCommand
from ...engine.transport.protocol import Command
from ...host.files import storage_errors, sync_folder
from ...store.blobs.files import delete_path
from ...store.checkpoint_places import KEPT, checkpoint_places, is_checkpoint
from ...store.store import Store
from .own import RESULT, ROWS, Crossing, copy_stored_file, copy_stored_folder

TEXTS = "texts"
"""The folder of a state directory with the base's tokenizer and chat template."""


class FrontFiles:
    """Stores and fetches through the store's blobs. All calls block."""

    def __init__(self, store: Store) -> None:
        self._state, self._blobs = store.state, store.blobs

    def send(self, command: TrainCommand) -> tuple[Crossing, ...]:
        """Store what a replica needs for a job beside adapters: its rows and checkpoints."""
        rows = self._blobs.put_file(self._state.jobs / command.rows.path)
        places = checkpoint_places(Path(command.checkpoint_dir)) if command.checkpoint_dir else []
        stored = [Crossing(place.name, self._blobs.put_folder(place).digest) for place in places]
        return (Crossing(ROWS, rows.digest), *stored)

    def take(self, command: Command, crossing: Crossing) -> None:
        """Put what a replica has written where the command says; durable on return."""
        match command:
            case TrainCommand() if crossing.name == RESULT:
                copy_stored_folder(self._blobs, crossing.digest, Path(command.output))
            case TrainCommand() if is_checkpoint(crossing.name):
                self._take_checkpoint(Path(command.checkpoint_dir), crossing)
            case ProfileCommand() if crossing.name == RESULT:
                copy_stored_file(self._blobs, crossing.digest, Path(command.output))

    def with_texts(self, info: EngineInfo, digest: str) -> EngineInfo:
        """``info`` of an engine whose base is elsewhere, with what the front reads of the base brought here."""
        folder = self._state.path / TEXTS
        delete_path(folder)
        copy_stored_folder(self._blobs, digest, folder)
        return replace(info, tokenizer_path=str(folder))

    def _take_checkpoint(self, folder: Path, crossing: Crossing) -> None:
        staged, place = folder / f"tmp-{uuid.uuid4().hex}", folder / crossing.name
        if not folder.is_dir():
            return  # the job was cancelled
        with storage_errors("cannot write a checkpoint"):
            try:
                copy_stored_folder(self._blobs, crossing.digest, staged)
                delete_path(place)
                staged.rename(place)
                sync_folder(folder)
            finally:
                delete_path(staged)
            for old in checkpoint_places(folder)[KEPT:]:
                delete_path(old)
