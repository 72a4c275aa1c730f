"""When a job is tried again after the engine was lost, and when no more."""

from __future__ import annotations

from dataclasses import dataclass

MAX_ENGINE_LOSSES = 3
"""A job at whose work the engine died this often without getting any further is not tried again: it may be why."""
MAX_RETRY_SECONDS = 60.0


@dataclass(slots=True)
class Trouble:
    """How often a job was tried in vain, and how often of these the engine died at its work on one stretch."""

    tries: int = 0
    deaths: int = 0
    step: int = -1

    @property
    def suspect(self) -> bool:
        """Whether the next attempt is the last. No other job is at work then: one of these may be the reason."""
        return self.deaths == MAX_ENGINE_LOSSES - 1

    def again(self, step: int, begun: bool) -> bool:
        """Note another loss of the engine, the job being at ``step``; False when the job shall not be tried again."""
        self.tries += 1
        if begun:
            self.deaths = self.deaths + 1 if step <= self.step else 1
            self.step = max(step, self.step)
        return self.deaths < MAX_ENGINE_LOSSES

    def delay(self, first: float) -> float:
        """Seconds until the next attempt, after ``first`` at the first loss and twice as long at each further one."""
        return min(first * 2 ** (self.tries - 1), MAX_RETRY_SECONDS)
