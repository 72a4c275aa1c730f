"""What the dashed lines stand for; recording.yml and alerts.yml have the same."""

from __future__ import annotations

FIRST_TOKEN = 2.5
"""Seconds within which the objective wants a first token."""
BUDGET = 0.01
"""Share of the first tokens that may come later."""
LEAST_FREE = 0.05
"""Share of the memory below which there is an alert."""
MOST_KV = 0.95
"""Share of the KV pages beyond which preemptions are an alert."""
