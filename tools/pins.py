"""Print constraints.txt: the exact version of everything in this environment that loramux needs.

Local version labels (torch 2.13.0+cpu) are dropped, so that a pin fits the CPU and the CUDA build alike.
loramux itself and the default base, which has its own hash-checked file, are left out.
"""

from __future__ import annotations

import re
from importlib.metadata import distribution, distributions

from packaging.requirements import Requirement
from packaging.utils import NormalizedName, canonicalize_name

ROOT = "loramux"
EXTRAS = ("server", "dev")
BUILD = ("hatchling", "editables")
HEADER = (
    "# Exact versions that loramux is developed and tested with: pip install -c constraints.txt 'loramux[server]'\n"
    "# Written by `make pins`; siblings of the grpcio family are not in step, so never set them equal by hand."
)


def needed(root: str, extras: tuple[str, ...]) -> set[NormalizedName]:
    """Canonical names of all installed distributions that ``root`` with ``extras`` asks for, itself included."""
    seen: set[tuple[NormalizedName, str]] = set()
    todo: list[tuple[NormalizedName, tuple[str, ...]]] = [
        (canonicalize_name(root), extras),
        *((canonicalize_name(name), ()) for name in BUILD),
    ]
    while todo:
        name, wanted = todo.pop()
        for extra in ("", *wanted):
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            for text in distribution(name).requires or ():
                requirement = Requirement(text)
                if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                    todo.append((canonicalize_name(requirement.name), tuple(requirement.extras)))
    return {name for name, _ in seen}


def main() -> None:
    names = needed(ROOT, EXTRAS) - {canonicalize_name(ROOT)}
    versions = {canonicalize_name(d.name): d.version for d in distributions()}
    print(HEADER)
    for name in sorted(names):
        print(f"{name}=={re.sub(r'[+].*', '', versions[name])}")


if __name__ == "__main__":
    main()
