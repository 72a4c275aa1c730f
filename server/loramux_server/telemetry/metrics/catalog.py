"""Every metric of the server. To add one, declare it here; docs/metrics.md is generated from these declarations.

Names and meanings follow vLLM's where it has the metric. Label values come only from closed sets (methods, codes,
states), or are bounded: see :mod:`.stacks`.
"""

from __future__ import annotations

from ...core.backend import QUEUE_WAIT_BOUNDS
from .declarations import CounterMetric, Declared, GaugeMetric, HistogramMetric, SummaryMetric

BY_STACK = ("tenant", "adapter")
DURATION = (0.05, 0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 60.0, 120.0, 240.0, 600.0)
FIRST_TOKEN = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
BETWEEN_TOKENS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0)

# Calls and answers.
REQUESTS = CounterMetric(
    name="loramux_requests_total",
    meaning="Calls that ended, by method and status.",
    labels=("method", "code"),
    unit="calls",
)
REQUEST_DURATION = HistogramMetric(
    name="loramux_request_duration_seconds",
    meaning="Whole calls, by method and by whose stack they computed with.",
    labels=("method", *BY_STACK),
    unit="seconds",
    bounds=DURATION,
)
FIRST_TOKENS = HistogramMetric(
    name="loramux_time_to_first_token_seconds",
    meaning="From a call to the first token of its answer.",
    labels=BY_STACK,
    unit="seconds",
    bounds=FIRST_TOKEN,
)
INTER_TOKEN = HistogramMetric(
    name="loramux_inter_token_latency_seconds",
    meaning="Between two tokens of one choice.",
    unit="seconds",
    bounds=BETWEEN_TOKENS,
)
PROMPT_TOKENS = CounterMetric(
    name="loramux_prompt_tokens_total", meaning="Prompt tokens taken in.", labels=BY_STACK, unit="tokens"
)
GENERATED_TOKENS = CounterMetric(
    name="loramux_generated_tokens_total", meaning="Tokens generated.", labels=BY_STACK, unit="tokens"
)
QUOTA_REFUSALS = CounterMetric(
    name="loramux_quota_refusals_total",
    meaning="Calls refused by a quota, by the limit that was reached.",
    labels=("limit", "tenant"),
    unit="calls",
)

# The batch.
RUNNING = GaugeMetric(name="loramux_requests_running", meaning="Generations in the batch.", unit="generations")
WAITING = GaugeMetric(
    name="loramux_requests_waiting", meaning="Generations that wait for a place in the batch.", unit="generations"
)
PREEMPTIONS = CounterMetric(
    name="loramux_preemptions_total", meaning="Generations put back to be computed again.", unit="generations"
)
DRAFT_TOKENS = CounterMetric(
    name="loramux_spec_decode_num_draft_tokens_total",
    meaning="Tokens of drafts that steps computed (`--speculate`).",
    unit="tokens",
)
ACCEPTED_TOKENS = CounterMetric(
    name="loramux_spec_decode_num_accepted_tokens_total",
    meaning="Tokens of drafts that became part of answers.",
    unit="tokens",
)
QUEUE_WAIT = HistogramMetric(
    name="loramux_queue_wait_seconds",
    meaning="From a generation's arrival in the engine to its first step.",
    unit="seconds",
    bounds=QUEUE_WAIT_BOUNDS,
)
STEPS = SummaryMetric(
    name="loramux_step_duration_seconds",
    meaning="Engine steps and their time: `prefill`, `decode`, `train`.",
    labels=("kind",),
    unit="seconds",
)
KV_USAGE = GaugeMetric(
    name="loramux_kv_cache_usage_ratio", meaning="Share of the KV pages in use, 0 to 1.", unit="ratio"
)
PREFIX_HITS = CounterMetric(
    name="loramux_prefix_cache_hit_tokens_total",
    meaning="Prompt tokens taken from the prefix cache.",
    unit="tokens",
)
STEP_LIMITS = GaugeMetric(
    name="loramux_step_limit",
    meaning="Most `tokens` and `sequences` of a step now: as configured, or less since memory ran out.",
    labels=("kind",),
    unit="tokens or sequences",
)
OUT_OF_MEMORY = CounterMetric(
    name="loramux_out_of_memory_total",
    meaning="Computations for requests that found no memory (`errors`), and what was given up for them:"
    " `micro_batches` dropped, `jobs` suspended, `steps` halved.",
    labels=("kind",),
    unit="events",
)
SUSPENDED_JOBS = GaugeMetric(
    name="loramux_training_jobs_suspended",
    meaning="Jobs that gave their memory up to requests, and go on from their checkpoints later.",
    unit="jobs",
)
CUDA_GRAPHS = GaugeMetric(
    name="loramux_cuda_graphs",
    meaning="CUDA graphs kept; 0: none could be captured. Only where the engine makes them.",
    unit="graphs",
)
CUDA_GRAPH_FAILURES = CounterMetric(
    name="loramux_cuda_graph_failures_total",
    meaning="Captures of CUDA graphs that failed: steps that needed them ran without. Only where there are graphs.",
    unit="captures",
)
GRAMMARS = CounterMetric(
    name="loramux_grammars_total",
    meaning="Grammars of structured output: `compiled`, `refused`, or `lost` with the process that held them.",
    labels=("result",),
    unit="grammars",
)
GRAMMAR_RESTARTS = CounterMetric(
    name="loramux_grammar_restarts_total",
    meaning="New starts of the process that grammars are forked from.",
    unit="starts",
)

# Memory and adapters.
MEMORY = GaugeMetric(
    name="loramux_vram_bytes",
    meaning="Memory of the GPU, or of the host on a CPU, by kind: `base`, `adapters`, `kv_cache`, `graphs`, "
    "`training`, `other`, `free`, `total`.",
    labels=("device", "kind"),
    unit="bytes",
)
ENGINE_MEMORY = GaugeMetric(
    name="loramux_engine_resident_memory_bytes", meaning="Resident memory of the engine's process.", unit="bytes"
)
GPU_ALLOCATOR = GaugeMetric(
    name="loramux_gpu_allocator_bytes",
    meaning="What torch's allocator has given to tensors (`allocated`), and holds of the GPU (`reserved`).",
    labels=("device", "state"),
    unit="bytes",
)
GPU_OTHERS = GaugeMetric(
    name="loramux_gpu_other_processes_bytes",
    meaning="What other processes hold of the GPU. Only where NVML shows them and the engine: seldom in a container.",
    labels=("device",),
    unit="bytes",
)
GPU_UTILIZATION = GaugeMetric(
    name="loramux_gpu_utilization_ratio",
    meaning="Share of the last moment in which the GPU was busy, 0 to 1. Only where NVML tells it.",
    labels=("device",),
    unit="ratio",
)
ADAPTERS = GaugeMetric(
    name="loramux_adapters_resident", meaning="Adapter versions in memory.", labels=("tier",), unit="versions"
)
RESIDENT = GaugeMetric(
    name="loramux_adapter_resident",
    meaning="1 while a version of this adapter is in memory, of whichever tenant; `_other`: how many versions have no "
    "name here.",
    labels=("adapter", "tier"),
)
ADAPTER_BYTES = GaugeMetric(
    name="loramux_adapter_bytes",
    meaning="What the adapter versions in memory use; `adapters` of `loramux_vram_bytes` is what is allocated.",
    labels=("tier",),
    unit="bytes",
)
ADAPTER_LOADS = SummaryMetric(
    name="loramux_adapter_load_duration_seconds",
    meaning="Loads of adapter versions: from disk to the `host`, from the host to the `device`.",
    labels=("tier",),
    unit="seconds",
)
ADAPTER_HITS = CounterMetric(
    name="loramux_adapter_hits_total",
    meaning="Where the adapters of requests were when these came: `device`, `host`, or `disk` alone.",
    labels=("tier",),
    unit="adapters",
)
ADAPTER_EVICTIONS = CounterMetric(
    name="loramux_adapter_evictions_total", meaning="Adapter versions dropped to make room.", unit="versions"
)

# Training.
JOBS = GaugeMetric(name="loramux_training_jobs", meaning="Training jobs by state.", labels=("state",), unit="jobs")
JOBS_ENDED = CounterMetric(
    name="loramux_training_jobs_ended_total",
    meaning="Training jobs that came to their end, by its state.",
    labels=("state",),
    unit="jobs",
)
TRAINING_STEPS = CounterMetric(name="loramux_training_steps_total", meaning="Optimizer steps.", unit="steps")
TRAINING_TOKENS = CounterMetric(name="loramux_training_tokens_total", meaning="Tokens trained on.", unit="tokens")
TRAINING_LOSS = GaugeMetric(
    name="loramux_training_loss", meaning="Latest loss of each running job, 64 at most.", labels=("job",), unit="nats"
)

# The server.
ENGINE_UP = GaugeMetric(name="loramux_engine_up", meaning="1 while the engine answers, 0 while it starts or is gone.")
ENGINE_RESTARTS = CounterMetric(
    name="loramux_engine_restarts_total", meaning="New starts of an engine that had died.", unit="starts"
)
CORRUPT_OBJECTS = CounterMetric(
    name="loramux_corrupt_objects_total",
    meaning="Stored content found damaged or gone when it was read: `adapter`, `dataset`, `checkpoint`, `base`.",
    labels=("kind",),
    unit="objects",
)
LOG_LINES_DROPPED = CounterMetric(
    name="loramux_log_lines_dropped_total",
    meaning="Lines of the front's log that standard error did not take: nobody read them, or its disk was full.",
    unit="lines",
)
CERTIFICATE_EXPIRY = GaugeMetric(
    name="loramux_tls_certificate_expiry_timestamp_seconds",
    meaning="When the server's certificate ends. Only with TLS.",
    unit="seconds since 1970",
)
TLS_RELOADS = CounterMetric(
    name="loramux_tls_reloads_total",
    meaning="Changes of the TLS files, by whether they are used: `ok`, `failed`. Only with TLS.",
    labels=("result",),
    unit="changes",
)
BUILD_INFO = GaugeMetric(
    name="loramux_build_info",
    meaning="Always 1; the labels tell what runs here.",
    labels=("version", "python", "base", "fingerprint", "device", "dtype"),
)

# Of the front's own process; prometheus_client makes these.
PROCESS = (
    CounterMetric(
        name="loramux_process_cpu_seconds_total", meaning="Processor time of the front's process.", unit="seconds"
    ),
    GaugeMetric(
        name="loramux_process_resident_memory_bytes", meaning="Resident memory of the front's process.", unit="bytes"
    ),
    GaugeMetric(
        name="loramux_process_virtual_memory_bytes", meaning="Virtual memory of the front's process.", unit="bytes"
    ),
    GaugeMetric(
        name="loramux_process_start_time_seconds",
        meaning="When the front's process started.",
        unit="seconds since 1970",
    ),
    GaugeMetric(name="loramux_process_open_fds", meaning="Open files of the front's process.", unit="files"),
    GaugeMetric(name="loramux_process_max_fds", meaning="Most files that it may open.", unit="files"),
)

_NAMED = [value for value in globals().values() if isinstance(value, Declared)]
CATALOG: tuple[Declared, ...] = (*_NAMED, *PROCESS)
"""All of them, in the order of the documentation."""
