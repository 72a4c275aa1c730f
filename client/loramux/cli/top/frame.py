"""One picture of what a server does, as lines of text for any width and height."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ...progress import clock
from ...types import JobActivity, Latency, ServerInfo, ServerStats, TenantActivity
from ..common import size
from .marks import Marks
from .tables import Column, Table, fit, share_rows, text

if TYPE_CHECKING:
    from rich.text import Text

LABEL = 11
"""Cells of the words that lines begin with."""
CURVE = 16
NOT_KINDS = ("free", "total", "process")
"""Entries of the memory that are no part of it."""
STYLES = ("blue", "green", "cyan", "magenta", "yellow", "red", "bright_blue", "white")
TENANTS = (
    Column("TENANT"),
    Column("RUNNING", right=True),
    Column("TOKENS/S", right=True),
    Column("PROMPT/S", right=True),
    Column("REQUESTS/S", 3, right=True),
    Column("FIRST p50/p99", 1, right=True),
    Column("BETWEEN p50/p99", 2, right=True),
)
ADAPTERS = (
    Column("ADAPTER"),
    Column("TENANT", 2),
    Column("TIER"),
    Column("PINNED", 1),
    Column("RANK", 4, right=True),
    Column("SIZE", 5, right=True),
    Column("RUNNING", right=True),
    Column("TOKENS/S", right=True),
    Column("PROMPT/S", 3, right=True),
    Column("REQUESTS/S", 6, right=True),
)
JOBS = (
    Column("JOB"),
    Column("TENANT", 3),
    Column("STATE", style="cyan"),
    Column("PROGRESS", style="green"),
    Column("STEP", right=True),
    Column("LOSS", right=True),
    Column("CURVE", 1, style="cyan"),
    Column("TOKENS/S", 4, right=True),
    Column("TIME LEFT", 2, right=True),
)


@dataclass(frozen=True, slots=True)
class View:
    """What is known of a server at a moment."""

    address: str
    marks: Marks
    now: str = ""
    """The time of day; empty: not shown."""
    info: ServerInfo | None = None
    stats: ServerStats | None = None
    rates: Sequence[float] = field(default=())
    """Tokens a second at the moments before, oldest first."""
    trouble: str = ""
    """Why there is nothing new; empty: there is."""
    hint: str = ""
    """What the last line says while there is no trouble."""


def lines(view: View, width: int, height: int | None = None) -> list[Text]:
    """The picture in ``width`` cells, and ``height`` lines at most; None: as many as it takes."""
    last = [_line((text(view.trouble), "bold red")) if view.trouble else _line((view.hint, "dim"))]
    if not (view.trouble or view.hint):
        last = []
    found = [_head(view, width), *(_figures(view.stats, view, width) if view.stats else ())]
    if view.stats is not None:
        tables = [table for table in _tables(view.stats, view.marks) if table.rows]
        wanted = [len(table.rows) for table in tables]
        # An empty line stands before each table, where there is room for all of them.
        room = 1 << 30 if height is None else height - len(found) - len(last)
        gap = int(room >= sum(want + 2 for want in wanted) or room > 4 * len(tables))
        rows = share_rows(wanted, room - gap * len(tables))
        for table, count in zip(tables, rows, strict=True):
            if count:
                found += [_line()] * gap
                found += table.lines(width, count, view.marks.cut)
    if height is not None:
        found = found[: height - len(last)]
        found += [_line()] * (height - len(last) - len(found))
    for line in found + last:
        line.truncate(width)
        line.rstrip()
    return found + last


def _line(*parts: tuple[str, str] | str) -> Text:
    from rich.text import Text

    return Text.assemble(*parts, no_wrap=True, overflow="crop", end="")


def _head(view: View, width: int) -> Text:
    info = view.info
    parts = [view.address]
    up = ""
    if info is not None:
        parts += [info.base_name.rstrip("/").rpartition("/")[2], f"{info.device} {info.dtype}".strip()]
        up = f"{info.state} for {clock(info.uptime_seconds)}"
    right = "  ".join(part for part in (up, view.now) if part)
    head = _line((text("  ".join(part for part in parts if part)), "bold"))
    if right:
        fit(head, max(width - len(right) - 2, 0), view.marks.cut)
        head.append(f"  {right}")
    return head


def _figures(stats: ServerStats, view: View, width: int) -> Iterator[Text]:
    shown = stats.total or stats.own
    marks = view.marks
    yield _labelled(
        "tokens",
        f"{shown.generated_tokens_per_second:.1f}/s generated  {shown.prompt_tokens_per_second:.1f}/s of prompts  ",
        (marks.curve(view.rates, min(len(view.rates), max(width - 55, 0))), "green"),
    )
    counts = f"{shown.requests_running} running"
    if stats.total is not None:
        counts = f"{stats.requests_running} running  {stats.requests_waiting} waiting"
    yield _labelled("requests", f"{counts}  {shown.requests_per_second:.1f}/s begun")
    first, between = (_latency(latency, 3) for latency in (shown.time_to_first_token, shown.inter_token_latency))
    yield _labelled("latency", f"first token {first}  between tokens {between}  ", ("(p50/p90/p99)", "dim"))
    if stats.kv_pages_total:
        share = stats.kv_pages_used / stats.kv_pages_total
        bar = marks.bar(share, max(min(width - LABEL - 30, 60), 0))
        yield _labelled("KV cache", (bar, "blue"), f"  {share:.0%} of {stats.kv_pages_total} pages")
    if stats.memory_bytes.get("total"):
        yield from _memory(stats.memory_bytes, marks, width)


def _memory(memory: dict[str, int], marks: Marks, width: int) -> Iterator[Text]:
    """A bar of the memory by kind, and what its parts are."""
    kinds = [(kind, count) for kind, count in memory.items() if count > 0 and kind not in NOT_KINDS]
    total, free = memory["total"], memory.get("free", 0)
    elsewhere = total - free - sum(count for _, count in kinds)
    if elsewhere > 0:
        kinds.append(("elsewhere", elsewhere))
    places = [(marks.kinds[i % len(marks.kinds)], STYLES[i % len(STYLES)]) for i in range(len(kinds))]
    words = f"  {size(total - free)} of {size(total)}"
    cells = max(min(width - LABEL - 24, 60), 0)
    widths = marks.parts([count for _, count in kinds], total, cells)
    bar = [(mark * wide, style) for (mark, style), wide in zip(places, widths, strict=True)]
    yield _labelled("memory", *bar, marks.empty * (cells - sum(widths)), words)
    line = _labelled("")
    for (kind, count), (mark, style) in zip(kinds, places, strict=True):
        legend = _line((mark, style), f" {text(kind.replace('_', ' '))} {size(count)}  ")
        if line.cell_len + legend.cell_len - 2 > width and line.cell_len > LABEL:
            yield line
            line = _labelled("")
        line.append_text(legend)
    yield line


def _labelled(label: str, *parts: tuple[str, str] | str) -> Text:
    return _line((label.ljust(LABEL), "bold"), *parts)


def _tables(stats: ServerStats, marks: Marks) -> Iterator[Table]:
    jobs = [_job(job, marks) for job in stats.jobs]
    yield Table(JOBS, jobs, max(sum(stats.jobs_by_state.values()), len(jobs)))
    adapters = [
        [
            (adapter.adapter or f"deleted {adapter.digest[:12]}")
            + (f" +{adapter.other_versions}" if adapter.other_versions else ""),
            adapter.tenant or ("shared" if adapter.adapter else ""),
            adapter.tier or "",
            "pinned" if adapter.pinned else "",
            str(adapter.rank or ""),
            size(adapter.size_bytes) if adapter.size_bytes else "",
            str(adapter.requests_running),
            f"{adapter.generated_tokens_per_second:.1f}",
            f"{adapter.prompt_tokens_per_second:.1f}",
            f"{adapter.requests_per_second:.1f}",
        ]
        for adapter in stats.adapters
    ]
    yield Table(ADAPTERS, adapters, len(adapters))
    tenants = [_tenant(tenant) for tenant in stats.tenants]
    yield Table(TENANTS, tenants, len(tenants))


def _tenant(tenant: TenantActivity) -> list[str]:
    return [
        tenant.tenant,
        str(tenant.requests_running),
        f"{tenant.generated_tokens_per_second:.1f}",
        f"{tenant.prompt_tokens_per_second:.1f}",
        f"{tenant.requests_per_second:.1f}",
        _latency(tenant.time_to_first_token, 2),
        _latency(tenant.inter_token_latency, 2),
    ]


def _job(job: JobActivity, marks: Marks) -> list[str]:
    share = job.step / job.total_steps if job.total_steps else 0.0
    return [
        job.name,
        job.tenant,
        job.state,
        marks.bar(share, 10),
        f"{job.step}/{job.total_steps or '?'}",
        "" if job.loss is None else f"{job.loss:.4f}",
        marks.curve(job.losses, CURVE),
        f"{job.tokens_per_second:.0f}" if job.tokens_per_second else "",
        "" if job.eta_seconds is None else clock(job.eta_seconds),
    ]


def _latency(latency: Latency, percentiles: int) -> str:
    """Milliseconds, or seconds where they are many; two percentiles are the 50th and the 99th."""
    if not latency.count:
        return "-"
    found = [latency.p50_seconds, latency.p90_seconds, latency.p99_seconds]
    chosen = found if percentiles == 3 else [found[0], found[-1]]
    if max(chosen) >= 10:
        return "/".join(f"{seconds:.1f}" for seconds in chosen) + " s"
    return "/".join(f"{seconds * 1000:.0f}" for seconds in chosen) + " ms"
