"""Work beside the engine takes a part of the time while others compute, and all of it otherwise."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from loramux_server.host.priority import LONGEST_PAUSE, SHARE, STRETCH, Pacer


class Clock:
    """Time that passes by work and by pauses alone."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.slept = 100.0, 0.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(time, "sleep", self.sleep)

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.slept += seconds


@pytest.mark.parametrize(
    ("loadavg", "share"),
    [("0.5 0.4 0.3 2/200 77\n", 1.0), ("0.5 0.4 0.3 3/200 77\n", SHARE), ("", 1.0), ("a b c d", 1.0), (None, 1.0)],
)
def test_the_share_of_the_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, loadavg: str | None, share: float
) -> None:
    clock = Clock(monkeypatch)
    file = tmp_path / "loadavg"
    if loadavg is not None:
        file.write_text(loadavg)
    pace = Pacer(cpus=4, loadavg=file)
    for _ in range(1000):
        clock.now += STRETCH / 3  # a row
        pace()
    worked = 1000 * STRETCH / 3
    assert worked / (worked + clock.slept) == pytest.approx(share, rel=0.01)


def test_a_long_row_makes_no_long_pause(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    clock = Clock(monkeypatch)
    (tmp_path / "loadavg").write_text("1 1 1 9/9 9")
    pace = Pacer(cpus=2, loadavg=tmp_path / "loadavg")
    clock.now += 60
    pace()
    assert clock.slept == LONGEST_PAUSE


def test_what_gives_way_stays_so() -> None:
    code = "import os; from loramux_server.host.priority import give_way; give_way();"
    code += "print(os.nice(0), os.sched_getscheduler(0) == os.SCHED_BATCH)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.split() == ["10", "True"]
