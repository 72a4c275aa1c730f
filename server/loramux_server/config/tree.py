"""The tree of settings: names, defaults, limits and the sentence that each has in the help."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ByteSize, SecretStr
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from ..core.settings import STEP_SIZES, AsyncScheduling, Device, Dtype, EngineSettings, Speculate, Weights
from ..core.types import SamplingParams
from .fields import (
    Address,
    HostNames,
    ListenAddress,
    LocalPath,
    OptionalAddress,
    Origins,
    OtlpUrl,
    Range,
    Replicas,
    Size,
    setting,
    state_home,
)
from .groups import AuditSettings, LogSettings, OidcSettings, TlsSettings, TrainingSettings
from .limits import LimitSettings

ENV_PREFIX = "LORAMUX_"


class Settings(LimitSettings, BaseSettings):
    """All that an operator may choose. Sizes in bytes, times in seconds unless the name says otherwise."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        env_prefix=ENV_PREFIX,
        env_nested_delimiter="__",
        env_ignore_empty=True,
        protected_namespaces=(),
    )

    model: str | None = setting(
        None,
        "Model",
        "MODEL",
        "base model: folder, hub id or .gguf file (default: SmolLM2-135M-Instruct)",
        min_length=1,
    )
    device: Device = setting("auto", "Model", "DEVICE", "where the model runs")
    dtype: Dtype = setting("auto", "Model", "DTYPE", "precision of the computation; float32 is the exact mode")
    cpu_weights: Weights = setting(
        "auto", "Model", "HOW", "on a CPU, keep the 4-bit weights packed (less memory) or unpack them once (faster)"
    )
    gpu_weights: Weights = setting("auto", "Model", "HOW", "on a GPU, as --cpu-weights on a CPU")
    threads: int | None = setting(
        None, "Model", "N", "processor threads of the engine (default: affinity and quota)", ge=1, le=1024
    )

    backend: Literal["embedded", "ray"] = setting(
        "embedded",
        "Replicas",
        "HOW",
        "where the engine runs: embedded, in a child process; or ray, as replicas of a Ray Serve deployment",
    )
    replicas: int = setting(
        1, "Replicas", "N", "with --backend ray, how many engines serve, each with its base", ge=1, le=10_000
    )
    autoscale: Replicas | None = setting(
        None, "Replicas", "MIN..MAX", "with --backend ray, bounds of their number, which then follows the load"
    )
    autoscale_up_seconds: float = setting(
        30.0,
        "Replicas",
        "SECONDS",
        "with --autoscale, how long replicas must have too many requests before one is started",
        ge=0,
        le=86_400,
        allow_inf_nan=False,
    )
    autoscale_down_seconds: float = setting(
        600.0,
        "Replicas",
        "SECONDS",
        "with --autoscale, how long there must be too many replicas before one is ended",
        ge=0,
        le=86_400,
        allow_inf_nan=False,
    )
    ray_address: str | None = setting(
        None,
        "Replicas",
        "ADDRESS",
        "with --backend ray, a cluster that runs already, such as 10.0.0.1:6379 or auto (default: one of this host is "
        "started, on loopback)",
        min_length=1,
    )
    replica_dir: LocalPath | None = setting(
        None,
        "Replicas",
        "DIR",
        "with --backend ray, a folder of each host where replicas keep the base, copies of adapters and running jobs; "
        "needs --blobs-url (default: the state directory, which all hosts must share then)",
    )

    listen: ListenAddress = setting(
        Address("127.0.0.1", 50051), "Network", "HOST:PORT", "where the gRPC API listens; port 0: any free port"
    )
    http_listen: OptionalAddress = setting(
        Address("127.0.0.1", 8000), "Network", "HOST:PORT", "where the HTTP APIs and the console are served, or off"
    )
    console: Literal["on", "off"] = setting(
        "on", "Network", "on|off", "whether the HTTP door has the console, a page for browsers, at /"
    )
    http_cors_origin: Origins = setting(
        (),
        "Network",
        "ORIGIN",
        "origin of a site whose pages may call the HTTP door, such as https://chat.example.org; may be given again",
    )
    http_allowed_host: HostNames = setting(
        (),
        "Network",
        "HOST",
        "name that the HTTP door may be called by while it takes everybody, beside localhost and addresses; may be "
        "given again",
    )
    http_metrics: bool = setting(
        False, "Network", "", "serve the metrics at /metrics of the HTTP door too, to who shows --metrics-token"
    )
    lora_root: LocalPath | None = setting(
        None,
        "Network",
        "DIR",
        "folder below which /v1/load_lora_adapter may read adapters, with the scope admin (default: none)",
    )
    metrics_listen: OptionalAddress = setting(
        Address("127.0.0.1", 9464), "Network", "HOST:PORT", "where Prometheus metrics are served, or off"
    )
    metrics_tls: bool = setting(False, "Network", "", "serve metrics over TLS, with the certificate of --tls-cert")
    metrics_token: LocalPath | None = setting(
        None, "Network", "FILE", "file with the bearer token that scrapes of the metrics must show (default: none)"
    )
    tls: TlsSettings = TlsSettings()
    insecure: bool = setting(
        False,
        "Network",
        "",
        "listen beyond loopback although there is no TLS, or no key that callers must show",
    )
    reflection: Literal["auto", "on", "off"] = setting(
        "auto", "Network", "MODE", "gRPC server reflection: on, off, or auto, which is on while no key is needed"
    )
    max_memory_share: float = setting(
        0.95,
        "Network",
        "SHARE",
        "part of the memory limit of the control groups beyond which the server is not ready; 1 is never",
        gt=0,
        le=1,
        allow_inf_nan=False,
    )
    max_connection_age: float = setting(
        0.0,
        "Network",
        "SECONDS",
        "age at which a client is asked to connect anew once its calls are over, so that load balancers can spread "
        "clients; 0 is none",
        ge=0,
        le=86_400,
        allow_inf_nan=False,
    )
    drain_timeout: float = setting(
        30.0,
        "Network",
        "SECONDS",
        "on a stop signal, time for running requests to finish",
        ge=0,
        le=86_400,
        allow_inf_nan=False,
    )

    bootstrap_key: LocalPath | None = setting(
        None,
        "Identity",
        "FILE",
        "file with an API key (loramux keys generate makes one); at the start it gets all scopes of the default tenant",
    )
    oidc: OidcSettings = OidcSettings()

    state_dir: LocalPath = setting(state_home, "State", "DIR", "database, adapters, datasets and the model cache")
    database_url: SecretStr | None = setting(
        None, "State", "URL", "SQL database of the registry (default: SQLite in the state directory)"
    )

    blobs_url: SecretStr | None = setting(
        None,
        "State",
        "URL",
        "where the files of adapters and datasets are kept, a URL of fsspec such as s3://bucket/folder "
        "(default: the state directory)",
        min_length=1,
    )
    blobs_cache: Size | None = setting(
        None, "State", "SIZE", "disk for local copies of files that are kept at --blobs-url (default: 8GiB)"
    )

    usage_flush_seconds: float = setting(
        5.0,
        "State",
        "SECONDS",
        "how often usage is written to the database; a crash loses what was used since then",
        ge=0.1,
        le=3600,
        allow_inf_nan=False,
    )

    kv_cache_memory: Size | None = setting(
        None, "Serving", "SIZE", "memory for keys and values, such as 512MiB (default: the engine chooses)"
    )
    adapter_memory: Size | None = setting(
        None, "Serving", "SIZE", "memory for resident adapters, such as 256MiB (default: the engine chooses)"
    )
    adapter_host_memory: Size | None = setting(
        None, "Serving", "SIZE", "host memory for adapters behind those on the device (default: the engine chooses)"
    )
    adapter_load_rate: float = setting(
        0.0,
        "Serving",
        "N",
        "adapters that one tenant's requests may have read from disk per second; 0 is no limit",
        ge=0,
        le=1_000_000,
        allow_inf_nan=False,
    )
    max_batch_tokens: int | None = setting(
        None,
        "Serving",
        "N",
        f"tokens per serve step (default: {STEP_SIZES['cuda'].tokens} on a GPU, {STEP_SIZES['cpu'].tokens} on a "
        "processor)",
        ge=1,
        le=1_048_576,
    )
    max_running: int | None = setting(
        None,
        "Serving",
        "N",
        f"generations in the batch at once (default: {STEP_SIZES['cuda'].sequences} on a GPU, "
        f"{STEP_SIZES['cpu'].sequences} on a processor)",
        ge=1,
        le=65_536,
    )
    max_queue: int = setting(1024, "Serving", "N", "generations that may wait; more are refused", ge=0, le=1_048_576)
    tenant_slowdown: float = setting(
        1.2,
        "Serving",
        "N",
        "how many times longer than alone the steps of the tenant with least to do may be beside others'; more gives "
        "these more tokens, 0 is no bound",
        ge=0,
        le=1000,
        allow_inf_nan=False,
    )
    default_max_tokens: int = setting(
        SamplingParams().max_tokens,
        "Serving",
        "N",
        "length limit of an answer when the request names none",
        ge=1,
        le=1_048_576,
    )
    speculate: Speculate = setting(
        "ngram",
        "Serving",
        "off|ngram",
        "drafts from the text (n-grams): several tokens a step where an answer repeats, the same ones as without",
    )
    async_scheduling: AsyncScheduling = setting(
        "auto",
        "Serving",
        "auto|on|off",
        "launch a step before the tokens of the one before are handled; auto is on for a GPU",
    )
    cuda_graphs: bool = setting(True, "Serving", "", "replay steps as CUDA graphs, on a GPU and in 16-bit types")

    max_training_jobs: int = setting(4, "Training", "N", "training jobs at work at a time", ge=1, le=64)
    training: TrainingSettings = TrainingSettings()
    log: LogSettings = LogSettings()
    otlp_traces_endpoint: OtlpUrl | None = setting(
        None,
        "Traces",
        "URL",
        "OpenTelemetry collector that spans are sent to, such as grpc://collector:4317 or "
        "http://collector:4318/v1/traces (default: what OTEL_EXPORTER_OTLP_ENDPOINT says, or none)",
    )
    otlp_traces_protocol: Literal["auto", "grpc", "http/protobuf"] = setting(
        "auto",
        "Traces",
        "PROTOCOL",
        "how spans are sent; auto: as OTEL_EXPORTER_OTLP_PROTOCOL says, else over HTTP to port 4318 or to /v1/traces, "
        "else over gRPC",
    )
    trace_sample_ratio: float | None = setting(
        None,
        "Traces",
        "SHARE",
        "share of the traces that are recorded where the caller has not decided, 0 to 1 (default: what "
        "OTEL_TRACES_SAMPLER says, or 1)",
        ge=0,
        le=1,
        allow_inf_nan=False,
    )
    audit: AuditSettings = AuditSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        # load() merges the sources itself, because it must remember where each value came from.
        return (init_settings,)

    @property
    def most_running(self) -> int:
        """Most generations in the batch of an engine, on whatever device."""
        return self.max_running or max(size.sequences for size in STEP_SIZES.values())

    @property
    def replica_range(self) -> Range:
        """The least and the most replicas."""
        return self.autoscale or Range(self.replicas, self.replicas)

    @property
    def audit_file(self) -> Path | None:
        """File of the audit log; None: there is none."""
        if self.audit.log == "off":
            return None
        return self.audit.log or self.state_dir / "audit" / "audit.jsonl"

    def engine(self) -> EngineSettings:
        """The part that the engine is built from."""
        return EngineSettings(
            model=self.model,
            state_dir=str(self.state_dir),
            folders=(str(self.state_dir),),
            device=self.device,
            dtype=self.dtype,
            cpu_weights=self.cpu_weights,
            gpu_weights=self.gpu_weights,
            threads=self.threads,
            kv_cache_memory=_plain(self.kv_cache_memory),
            adapter_memory=_plain(self.adapter_memory),
            adapter_host_memory=_plain(self.adapter_host_memory),
            adapter_load_rate=self.adapter_load_rate,
            max_batch_tokens=self.max_batch_tokens,
            max_running=self.max_running,
            max_queue=self.max_queue,
            tenant_slowdown=self.tenant_slowdown,
            training_share=self.training.share,
            training_slice_ms=self.training.slice_ms,
            training_activation_memory=_plain(self.training.activation_memory),
            training_dtype=self.training.dtype,
            cuda_graphs=self.cuda_graphs,
            speculate=self.speculate,
            async_scheduling=self.async_scheduling,
            grammar_seconds=self.max_grammar_seconds,
            grammar_memory=int(self.max_grammar_memory),
        )


def _plain(size: ByteSize | None) -> int | None:
    """A plain integer: the engine may be another process, and the wire knows no subclasses."""
    return None if size is None else int(size)


@dataclass(frozen=True, slots=True)
class Leaf:
    """One setting: its path in the tree and its declaration."""

    path: tuple[str, ...]
    info: FieldInfo

    @property
    def name(self) -> str:
        return ".".join(self.path)

    @property
    def flag(self) -> str:
        return "--" + "-".join(self.path).replace("_", "-")

    @property
    def variable(self) -> str:
        return ENV_PREFIX + "__".join(self.path).upper()


def leaves(model: type[BaseModel] = Settings, prefix: tuple[str, ...] = ()) -> Iterator[Leaf]:
    """Every setting in the order of declaration."""
    # Limits last: they are many, and few operators need to know them.
    for name, info in sorted(model.model_fields.items(), key=lambda field: field[0] in LimitSettings.model_fields):
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            yield from leaves(info.annotation, (*prefix, name))
        else:
            yield Leaf((*prefix, name), info)
