"""The panels, row by row."""

from __future__ import annotations

from .limits import FIRST_TOKEN, LEAST_FREE, MOST_KV
from .overview import OVERVIEW
from .panel import TOKENS, Panel, above
from .queries import COMPUTED, SERVER, STACK, TENANT, p95, per_hour, rate, ratio, split

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
    Panel(
        "Resident adapters",
        "What is in memory now, and in which tier.",
        "none",
        {"": f'sum by (instance, adapter, tier) (loramux_adapter_resident{{{SERVER}, adapter=~"$adapter"}})'},
        width=16,
        kind="table",
        hidden=("Value",),
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
        "Of the GPU, or of the host on a CPU: what is taken. What is free is beside it.",
        "bytes",
        {"{{kind}}": f'sum by (kind) (loramux_vram_bytes{{{SERVER}, kind!~"total|free"}})'},
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
        "Memory of the processes",
        "The front talks to clients, the engine owns the model. On a GPU this is host memory.",
        "bytes",
        {
            "front": f"sum(loramux_process_resident_memory_bytes{{{SERVER}}})",
            "engine": f"sum(loramux_engine_resident_memory_bytes{{{SERVER}}})",
        },
    ),
    Panel(
        "Device busy",
        "Share of the time in which the GPU is busy, as NVML tells it; without one, in which the engine computes.",
        "percentunit",
        {
            "{{instance}}": f"max by (instance) (loramux_gpu_utilization_ratio{{{SERVER}}})"
            f" or {rate('step_duration_seconds_sum', by='instance')}"
        },
        most=1,
    ),
    Panel(
        "Open files of the front",
        "Connections are open files too. Beyond the limit calls are refused.",
        "none",
        {
            "open": f"max(loramux_process_open_fds{{{SERVER}}})",
            "limit": f"min(loramux_process_max_fds{{{SERVER}}})",
        },
    ),
    Panel(
        "Servers",
        "What runs where.",
        "none",
        {"": f"loramux_build_info{{{SERVER}}}"},
        width=24,
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
