"""What bars and curves are drawn with, on terminals that have these characters and on those that have not."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from ..._streams import encodable
from ...progress import BARS, sparkline


@dataclass(frozen=True, slots=True)
class Marks:
    """Characters of a drawing. ``kinds`` tell the parts of a bar apart without colours."""

    full: str
    empty: str
    kinds: str
    bars: str
    cut: str

    def bar(self, share: float, width: int) -> str:
        """A bar that is filled by ``share``, 0 to 1; what is above 0 is seen."""
        filled = min(max(round(share * width), int(share > 0)), width)
        return self.full * filled + self.empty * (width - filled)

    def parts(self, sizes: Sequence[float], total: float, width: int) -> list[int]:
        """How many of ``width`` cells each of ``sizes`` has of a bar that stands for ``total``."""
        edges, so_far = [0], 0.0
        for size in sizes:
            so_far += size
            edges.append(min(round(so_far / total * width), width) if total > 0 else 0)
        return [b - a for a, b in itertools.pairwise(edges)]

    def curve(self, values: Sequence[float], width: int) -> str:
        """Values as a line of bars; nothing where there are no such characters, or no two values."""
        return sparkline(values, width) if self.bars and len(values) > 1 else ""


UNICODE = Marks(full="█", empty="·", kinds="█▓▒░▚▞▙▛", bars=BARS, cut="…")
ASCII = Marks(full="#", empty=".", kinds="#=+-o*x%", bars="", cut="~")


def marks() -> Marks:
    """Those that standard output can take."""
    return UNICODE if encodable("".join((UNICODE.full, UNICODE.empty, UNICODE.kinds, UNICODE.bars))) else ASCII
