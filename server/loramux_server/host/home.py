"""The home folder, which a process in a container or a service may not have."""

from __future__ import annotations

from pathlib import Path


def home() -> Path | None:
    """The user's home folder; None where neither HOME nor the user database names one."""
    try:
        return Path.home()
    except RuntimeError:
        return None


def short(path: Path) -> str:
    """A path for people, with the home folder as ``~``."""
    folder = home()
    return f"~/{path.relative_to(folder)}" if folder and path.is_relative_to(folder) else str(path)


def expand(text: str) -> Path:
    """A path that may begin with ``~`` or ``~user``. Raises ValueError where that is no folder here."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        tilde = Path(text).parts[0]
        raise ValueError(f"{tilde} is no folder here (HOME is not set or the user is unknown); write it out") from None
