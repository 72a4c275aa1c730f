"""What is told of a registry at scale: one table, with the goals beside the figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from rich.table import Table

from .job import BankLoads
from .samples import Figures, p95
from .scale_parts import ColdLoads, Compared, Listing
from .seven_billion import Computed

EXTRA_SECONDS = 5.0
KEPT_SHARE = 0.8
CLIFF_RATIO = 3.0
LOAD_SECONDS = 0.020


@dataclass(frozen=True, slots=True)
class Line:
    """A row of the table. ``met`` is None where there is no goal."""

    part: str
    what: str
    figure: str
    goal: str = ""
    met: bool | None = None


def start_lines(empty: Sequence[float], full: Sequence[float], registered: int) -> list[Line]:
    """``empty`` and ``full``: seconds until ready without and with ``registered`` adapters."""
    extra = median(full) - median(empty)
    return [
        Line("start", "ready with none registered, median", f"{median(empty):.2f} s"),
        Line("", f"ready with {registered} registered, median", f"{median(full):.2f} s"),
        _goal("", "extra", f"{extra:+.2f} s", f"< {EXTRA_SECONDS:g} s", extra < EXTRA_SECONDS),
    ]


def listing_lines(empty: Listing, full: Listing) -> list[Line]:
    """A server without adapters, and one with many."""
    return [
        Line("list", f"all {full.listed}, {len(full.first)} pages", f"{sum(full.first):.2f} s"),
        Line("", "page p50, p95", _pair(full.first)),
        Line("", "page p50, p95, the second time", _pair(full.again)),
        Line("", "GetAdapter p50, p95", _pair(full.get)),
        Line("", "front's memory, at most: none registered", _size(empty.front_bytes)),
        Line("", f"front's memory, at most: {full.listed} registered and listed", _size(full.front_bytes)),
    ]


def popular_lines(found: Compared, few: int, many: int, slots: int) -> list[Line]:
    """Zipf traffic over many adapters beside few that stay resident."""
    share = found.many.tokens_per_second / found.few.tokens_per_second
    hits = ", ".join(f"{tier} {part:.0%}" for tier, part in found.hits.items())
    goal = _goal("", "share of the tokens/s kept", f"{share:.2f}", f">= {KEPT_SHARE}", share >= KEPT_SHARE)
    return [
        Line("traffic", f"{few} resident: tokens/s", f"{found.few.tokens_per_second:.1f}"),
        Line("", f"{few} resident: first token p50, p95", _first(found.few)),
        Line("", f"Zipf over {many}, room for {slots}: tokens/s", f"{found.many.tokens_per_second:.1f}"),
        Line("", f"Zipf over {many}: first token p50, p95", _first(found.many)),
        Line("", f"Zipf over {many}: adapters were on", hits or "-"),
        *_load_lines(found),
        goal,
    ]


def cliff_lines(found: Compared, slots: int) -> list[Line]:
    """As many adapters as slots, and twice as many."""
    ratio = found.many.first_p50 / found.few.first_p50
    return [
        Line("cliff", f"{slots} adapters in {slots} slots: first token p50, p95", _first(found.few)),
        Line("", f"{2 * slots} adapters in {slots} slots: first token p50, p95", _first(found.many)),
        Line("", f"{slots} adapters: tokens/s", f"{found.few.tokens_per_second:.1f}"),
        Line("", f"{2 * slots} adapters: tokens/s", f"{found.many.tokens_per_second:.1f}"),
        *_load_lines(found),
        _goal("", "median first token, twice as many", f"{ratio:.2f}x", f"<= {CLIFF_RATIO:g}x", ratio <= CLIFF_RATIO),
    ]


def cold_lines(found: ColdLoads, adapter_bytes: int) -> list[Line]:
    """Loads of one adapter from disk."""
    whole = median(found.whole)
    return [
        Line("cold load", f"{len(found.host)} of {_size(adapter_bytes)}, in the page cache", f"{found.cached:.0%}"),
        Line("", "disk to host p50, p95", _pair(found.host)),
        Line("", "host to device p50, p95", _pair(found.device)),
        _goal("", "both, p50, p95", _pair(found.whole), f"p50 < {1000 * LOAD_SECONDS:g} ms", whole < LOAD_SECONDS),
        Line("", "added to the first token p50, p95", _pair(found.added)),
    ]


def seven_lines(computed: Computed, measured: BankLoads, disk: float, memory: float) -> list[Line]:
    """A base of seven billion parameters."""
    return [
        Line("7B, rank 16", "bytes of an adapter (computed)", _size(computed.adapter_bytes)),
        Line("", f"from disk at {disk / 1e9:.2f} GB/s (computed)", _ms(computed.disk_seconds)),
        Line("", f"through memory at {memory / 1e9:.1f} GB/s (computed)", _ms(computed.memory_seconds)),
        Line("", "adapters in 24 GB beside the NF4 base (computed)", str(computed.adapters_on_card)),
        Line("", "disk to host p50, p95 (measured)", _pair(measured.host)),
        Line("", f"host to {measured.device} p50, p95 (measured)", _pair(measured.copies)),
    ]


def make_table(lines: Sequence[Line], title: str) -> Table:
    """The lines in their order, a rule before each part."""
    table = Table(title=title, title_justify="left")
    for column in ("", "what", "figure", "goal", ""):
        table.add_column(column, justify="right" if column == "figure" else "left", no_wrap=True)
    for line in lines:
        if line.part:
            table.add_section()
        met = "" if line.met is None else "met" if line.met else "[red]missed[/red]"
        table.add_row(line.part, line.what, line.figure, line.goal, met)
    return table


def _load_lines(found: Compared) -> list[Line]:
    words = {"host": "disk to host", "device": "host to device"}
    return [
        Line("", f"loads meanwhile, {words[tier]}: number, mean", f"{count}, {_ms(seconds / count)}")
        for tier, (count, seconds) in found.loads.items()
        if count
    ]


def _goal(part: str, what: str, figure: str, goal: str, met: bool) -> Line:
    return Line(part, what, figure, goal, met)


def _first(figures: Figures) -> str:
    return f"{_ms(figures.first_p50)}, {_ms(figures.first_p95)}"


def _pair(seconds: Sequence[float]) -> str:
    return f"{_ms(median(seconds))}, {_ms(p95(seconds))}" if seconds else "-"


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.1f} ms" if abs(seconds) < 1 else f"{seconds:.2f} s"


def _size(size: float) -> str:
    return f"{size / 2**20:.1f} MiB"
