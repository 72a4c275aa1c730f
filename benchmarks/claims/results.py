"""The results file: each part is written as soon as it is done, and a run that was stopped goes on where it was."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any


class Results:
    """Figures by part. May be used from several threads."""

    def __init__(self, path: Path, about: dict[str, Any]) -> None:
        """Take up what ``path`` has. Raises ValueError where that was found under other settings than ``about``."""
        self.path = path
        self._lock = threading.Lock()
        self._found: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {"about": about, "parts": {}}
        was = {key: self._found["about"].get(key) for key in about if key != "machine"}
        if was != {key: value for key, value in about.items() if key != "machine"}:
            raise ValueError(f"{path} holds figures of other settings: {was}; name another file with --json")

    @property
    def parts(self) -> dict[str, Any]:
        return dict(self._found["parts"])

    def put(self, part: str, figures: Any) -> None:
        """Write the figures of a part."""
        with self._lock:
            self._found["parts"][part] = figures
            self._write()

    def append(self, part: str, figures: Any) -> None:
        """Write one more entry of a part that is a list."""
        with self._lock:
            self._found["parts"].setdefault(part, []).append(figures)
            self._write()

    def list(self, part: str) -> list[Any]:
        """The entries of a part so far."""
        with self._lock:
            return [*self._found["parts"].get(part, [])]

    def _write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        draft = self.path.with_suffix(".tmp")
        draft.write_text(json.dumps(self._found, indent=1) + "\n")
        os.replace(draft, self.path)
