"""The panels, row by row."""

from __future__ import annotations

from dataclasses import replace

from .panel import TOKENS, Panel, above, number
from .queries import COMPUTED, SERVER, STACK, TENANT, p95, per_hour, quantile, quantiles, rate, ratio, split

FIRST_TOKEN, BUDGET, LEAST_FREE, MOST_KV = 2.5, 0.01, 0.05, 0.95
"""The objective of recording.yml, its budget, and where alerts on memory begin."""

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

TENANTS = [
    Panel("Generated tokens by tenant", "", TOKENS, split("generated_tokens_total", "tenant", STACK), stacked=True),
    Panel("Prompt tokens by tenant", "", TOKENS, split("prompt_tokens_total", "tenant", STACK), stacked=True),
    Panel(
        "Calls by tenant",
        "Calls that computed something: answers, scores, embeddings.",
        "reqps",
        split("request_duration_seconds_count", "tenant", COMPUTED),
        stacked=True,
    ),
    Panel(
        "Time to first token by tenant, p95",
        "",
        "s",
        p95("time_to_first_token_seconds", "tenant"),
        above(FIRST_TOKEN),
    ),
    Panel("Call duration by tenant, p95", "", "s", p95("request_duration_seconds", "tenant", COMPUTED)),
    Panel(
        "Refusals by quota",
        "Calls that a quota refused.",
        "reqps",
        {"{{tenant}}: {{limit}}": rate("quota_refusals_total", TENANT, "tenant, limit")},
        stacked=True,
    ),
]

ADAPTERS = [
    Panel("Generated tokens by adapter", "", TOKENS, split("generated_tokens_total", "adapter", STACK), stacked=True),
    Panel(
        "Time to first token by adapter, p95",
        "Loading an adapter that is not on the device is part of it.",
        "s",
        p95("time_to_first_token_seconds", "adapter"),
        above(FIRST_TOKEN),
    ),
    Panel("Call duration by adapter, p95", "", "s", p95("request_duration_seconds", "adapter", COMPUTED)),
    Panel(
        "Where adapters were found",
        "The adapters of requests when these came: on the device, in host memory, or on the disk alone.",
        "ops",
        split("adapter_hits_total", "tier"),
        stacked=True,
    ),
    Panel(
        "Loads and evictions",
        "Adapter versions read into a tier, and those dropped from the device to make room.",
        "ops",
        {
            "loads, {{tier}}": rate("adapter_load_duration_seconds_count", by="tier"),
            "evictions": rate("adapter_evictions_total"),
        },
    ),
    Panel(
        "Mean time of a load",
        "From the disk to the host, from the host to the device.",
        "s",
        {"{{tier}}": ratio("adapter_load_duration_seconds_sum", "adapter_load_duration_seconds_count", "tier")},
    ),
    Panel(
        "Adapter versions in memory",
        "",
        "none",
        {"{{tier}}": f"sum by (tier) (loramux_adapters_resident{{{SERVER}}})"},
    ),
]

TRAINING = [
    Panel(
        "Jobs by state",
        "Jobs that have not ended.",
        "none",
        {"{{state}}": f'sum by (state) (loramux_training_jobs{{{SERVER}, state!~"succeeded|failed|cancelled"}})'},
        stacked=True,
    ),
    Panel(
        "Loss",
        "Of each running job, at its latest optimizer step.",
        "none",
        {"{{job}}": f"loramux_training_loss{{{SERVER}}}"},
    ),
    Panel(
        "Jobs ended", "Within the hour before.", "none", {"{{state}}": per_hour("training_jobs_ended_total", "state")}
    ),
    Panel("Tokens trained on", "", TOKENS, {"tokens": rate("training_tokens_total")}),
    Panel("Optimizer steps", "", "ops", {"steps": rate("training_steps_total")}),
    Panel(
        "Share of training",
        "Share of the engine's time that training takes.",
        "percentunit",
        {"train": rate("step_duration_seconds_sum", f'{SERVER}, kind="train"')},
        most=1,
    ),
]

MEMORY = [
    Panel(
        "Memory by kind",
        "Of the GPU, or of the host on a CPU.",
        "bytes",
        {"{{kind}}": f'sum by (kind) (loramux_vram_bytes{{{SERVER}, kind!~"total|process"}})'},
        stacked=True,
    ),
    Panel(
        "Free memory by server",
        "Below the dashed line there is an alert.",
        "percentunit",
        {"{{instance}}": f"instance:loramux_memory_free:ratio{{{SERVER}}}"},
        (("red", None), ("transparent", LEAST_FREE)),
        most=1,
    ),
    Panel(
        "KV cache in use",
        "Share of the KV pages that running generations hold.",
        "percentunit",
        {"{{instance}}": f"loramux_kv_cache_usage_ratio{{{SERVER}}}"},
        above(MOST_KV),
        most=1,
    ),
    Panel("Memory of adapters", "", "bytes", {"{{tier}}": f"sum by (tier) (loramux_adapter_bytes{{{SERVER}}})"}),
    Panel(
        "Prefix cache",
        "Share of the prompt tokens that were found in it.",
        "percentunit",
        {"found": ratio("prefix_cache_hit_tokens_total", "prompt_tokens_total")},
        most=1,
    ),
    Panel(
        "Preemptions",
        "Generations that lost their KV pages and are computed again.",
        "ops",
        {"preemptions": rate("preemptions_total")},
    ),
]

HEALTH = [
    Panel(
        "Damaged objects",
        "Stored content that was found damaged when it was read, within the hour before.",
        "none",
        {"{{kind}}": per_hour("corrupt_objects_total", "kind")},
    ),
    Panel(
        "Engine restarts",
        "New starts of an engine that had died, within the hour before.",
        "none",
        {"{{instance}}": per_hour("engine_restarts_total", "instance")},
    ),
    Panel(
        "Grammars",
        "Shapes of structured output, by what came of them.",
        "ops",
        split("grammars_total", "result"),
    ),
    Panel(
        "Memory of the front",
        "The process that talks to clients; the engine's own is in the row above.",
        "bytes",
        {"{{instance}}": f"loramux_process_resident_memory_bytes{{{SERVER}}}"},
    ),
    Panel(
        "Servers",
        "What runs where.",
        "none",
        {"": f"loramux_build_info{{{SERVER}}}"},
        width=16,
        kind="table",
        hidden=("Value", "__name__", "job"),
    ),
]

ROWS = {
    "Overview": OVERVIEW,
    "Tenants": TENANTS,
    "Adapters": ADAPTERS,
    "Training": TRAINING,
    "Memory": MEMORY,
    "Health": HEALTH,
}
