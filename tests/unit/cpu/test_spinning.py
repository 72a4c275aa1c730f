"""When threads at a barrier spin and when they sleep, and that the switch does what it says."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from loramux_server.cpu.environment import SPIN_COUNT, engine_environment, may_spin
from loramux_server.cpu.spinning import PERIOD, WRONG, Decision, thread_times
from loramux_server.host.resources import usable_cpus

SECOND = 10**9


def spend(decision: Decision, seconds: float, ran: float, waited: float) -> list[bool]:
    """Decisions of periods in which two threads ran and waited for so many seconds a second."""
    found = []
    for _ in range(round(seconds / PERIOD)):
        end = {str(thread): (int(ran * PERIOD * SECOND / 2), int(waited * PERIOD * SECOND / 2)) for thread in (1, 2)}
        found.append(decision.after({"1": (0, 0), "2": (0, 0)}, end, PERIOD))
    return found


def test_threads_sleep_until_processors_are_known_to_be_free() -> None:
    decision = Decision()
    assert not decision.spinning
    assert spend(decision, 0.75, 1.9, 0.01) == [False] * 3
    assert spend(decision, 0.25, 1.9, 0.01) == [True]


def test_an_engine_without_work_tells_nothing() -> None:
    decision = Decision()
    assert not any(spend(decision, 30, 0.02, 0.0))
    assert spend(decision, 1, 1.9, 0.0)[-1]
    assert all(spend(decision, 30, 0.02, 0.02))


def test_field_04_threads_sleep_as_soon_as_others_want_the_processors() -> None:
    decision = Decision()
    spend(decision, 2, 1.9, 0.0)
    assert spend(decision, PERIOD, 1.2, 0.8) == [False]


def test_field_04_a_decision_that_was_wrong_is_tried_again_more_and_more_rarely() -> None:
    """Sleeping threads may hardly wait beside a busy process; the tries that show it must not add up."""
    decision, periods = Decision(), 0
    for _ in range(round(300 / PERIOD)):
        others = 0.8 if decision.spinning else 0.0
        spend(decision, PERIOD, 1.2, others)
        periods += decision.spinning
    assert periods * PERIOD < 0.02 * 300


def test_a_neighbour_that_comes_and_goes_is_no_wrong_decision() -> None:
    decision = Decision()
    for _ in range(10):
        spend(decision, WRONG + 1, 1.9, 0.0)
        assert decision.spinning
        spend(decision, 1, 1.2, 0.8)
        assert not decision.spinning
    assert spend(decision, 1, 1.9, 0.0)[-1]


def test_threads_that_end_or_begin_do_not_disturb() -> None:
    decision = Decision()
    for _ in range(8):
        decision.after({"1": (5 * SECOND, 9 * SECOND)}, {"2": (SECOND // 5, 0)}, PERIOD)
    assert decision.spinning


def test_the_kernel_counts_this_process_s_threads() -> None:
    if not os.path.exists("/proc/self/schedstat"):
        pytest.skip("this kernel does not count what threads waited for")
    before = thread_times()
    sum(range(10**6))
    ran = {thread: times[0] for thread, times in thread_times().items()}
    assert any(ran[thread] > times[0] for thread, times in before.items() if thread in ran)


CHILD = """
import ctypes, time, torch
from loramux_server.cpu.spinning import SleepingTeam

torch.set_num_threads(2)
numbers = torch.ones(1 << 18)

def spent():
    before = time.process_time()
    for _ in range(20):
        numbers.add_(1)
        time.sleep(0.02)
    return time.process_time() - before

alone = spent()
team = SleepingTeam(2)
numbers.add_(1)
crowded = spent()
team.close()
numbers.add_(1)
again = spent()
print(alone > 5 * crowded, again > 5 * crowded, alone, crowded, again)
"""


@pytest.mark.slow
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one processor: libgomp never spins")
def test_field_04_a_sleeping_team_ends_the_spinning_of_the_others() -> None:
    """Told by processor time: a thread that waits without end for the next operation spins all the while."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
    pair = sorted(os.sched_getaffinity(0))[:2]
    done = subprocess.run(
        [sys.executable, "-c", CHILD],
        env={**environment, "GOMP_SPINCOUNT": "1000000000"},
        preexec_fn=lambda: os.sched_setaffinity(0, pair),
        capture_output=True,
        text=True,
        check=True,
        timeout=90,
    )
    assert done.stdout.split()[:2] == ["True", "True"], done.stdout


def test_field_04_the_engine_starts_as_many_threads_as_it_may_use() -> None:
    assert engine_environment({})["OMP_NUM_THREADS"] == str(usable_cpus())
    assert engine_environment({"OMP_NUM_THREADS": "1"})["OMP_NUM_THREADS"] == "1"


def test_field_04_what_the_operator_says_about_waiting_holds() -> None:
    passive = engine_environment({"OMP_WAIT_POLICY": "passive"})
    assert "GOMP_SPINCOUNT" not in passive  # it would override the policy
    assert not may_spin(passive)
    assert not may_spin(engine_environment({"GOMP_SPINCOUNT": "0"}))
    assert may_spin({"GOMP_SPINCOUNT": SPIN_COUNT})
