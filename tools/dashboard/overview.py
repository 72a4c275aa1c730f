"""The panels of the first row."""

from __future__ import annotations

from dataclasses import replace

from .limits import BUDGET, FIRST_TOKEN, LEAST_FREE
from .panel import TOKENS, Panel, above, number
from .queries import SERVER, p95, quantile, quantiles, rate, split

OVERVIEW = [
    replace(
        number(
            "Engine",
            "Up while the engine of every server answers.",
            "none",
            f"min(loramux_engine_up{{{SERVER}}})",
            (("red", None), ("green", 1)),
        ),
        values={"0": "down", "1": "up"},
    ),
    number(
        "Alerts",
        "Alerts of deploy/monitoring/alerts.yml that fire.",
        "none",
        'count(ALERTS{alertname=~"Loramux.+", alertstate="firing"}) or vector(0)',
        (("green", None), ("red", 1)),
    ),
    number(
        "Failed calls",
        "Share of the calls of five minutes that ended with INTERNAL, UNAVAILABLE, DATA_LOSS or DEADLINE_EXCEEDED.",
        "percentunit",
        f"max(instance:loramux_requests_failed:ratio_rate5m{{{SERVER}}})",
        (("green", None), ("yellow", 0.01), ("red", 0.05)),
    ),
    number(
        "First token, p95",
        "95 % of the requests had their first token within this time.",
        "s",
        quantile(0.95, "time_to_first_token_seconds"),
        (("green", None), ("yellow", FIRST_TOKEN / 2), ("red", FIRST_TOKEN)),
    ),
    number("Generated tokens", "Tokens generated per second.", TOKENS, rate("generated_tokens_total")),
    number(
        "Waiting",
        "Generations that wait for a place in the batch.",
        "none",
        f"sum(loramux_requests_waiting{{{SERVER}}})",
        (("green", None), ("yellow", 1), ("red", 50)),
    ),
    number(
        "Free memory",
        "Share of the memory that is free: of the GPU, or of the host on a CPU.",
        "percentunit",
        f"min(instance:loramux_memory_free:ratio{{{SERVER}}})",
        (("red", None), ("yellow", LEAST_FREE), ("green", 0.15)),
    ),
    number(
        "Jobs at work",
        "Training jobs that run, are evaluated or published.",
        "none",
        f'sum(loramux_training_jobs{{{SERVER}, state=~"running|evaluating|publishing"}})',
    ),
    Panel(
        "Calls by status",
        "Calls of all doors that ended.",
        "reqps",
        split("requests_total", "code"),
        stacked=True,
    ),
    Panel(
        "Tokens",
        "Prompt tokens, those of them that the prefix cache had, and tokens generated.",
        TOKENS,
        {
            "prompt": rate("prompt_tokens_total"),
            "prompt, cached": rate("prefix_cache_hit_tokens_total"),
            "generated": rate("generated_tokens_total"),
        },
    ),
    Panel(
        "Running and waiting",
        "Generations in the batch, and those that wait for a place in it.",
        "none",
        {word: f"sum(loramux_requests_{word}{{{SERVER}}})" for word in ("running", "waiting")},
    ),
    Panel(
        "Time to first token",
        "From the call to its first token. The dashed line is the objective.",
        "s",
        quantiles("time_to_first_token_seconds"),
        above(FIRST_TOKEN),
    ),
    Panel("Time between tokens", "Of one choice.", "s", quantiles("inter_token_latency_seconds")),
    Panel(
        "Queue wait",
        "From a generation's arrival in the engine to its first step.",
        "s",
        quantiles("queue_wait_seconds"),
    ),
    Panel(
        "Late first tokens",
        "Share of the first tokens that missed the objective, over several windows. The dashed line is the budget.",
        "percentunit",
        {
            window: f"max(instance:loramux_first_tokens_late:ratio_rate{window}{{{SERVER}}})"
            for window in ("5m", "30m", "1h", "6h")
        },
        above(BUDGET),
    ),
    Panel(
        "Call duration by method, p95",
        "Whole calls; a stream ends with its last token.",
        "s",
        p95("request_duration_seconds", "method", SERVER),
    ),
    Panel(
        "Engine time by kind of step",
        "Share of the time that the engine spends in steps. The rest of 100 % it waits for work.",
        "percentunit",
        split("step_duration_seconds_sum", "kind"),
        most=1,
        stacked=True,
    ),
]
