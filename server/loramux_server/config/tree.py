"""The tree of settings: names, defaults, limits and the sentence that each has in the help."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, cast

from pydantic import BaseModel, BeforeValidator, ByteSize, ConfigDict, Field, PlainSerializer, SecretStr
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from ..core.errors import invalid_field
from ..core.settings import CpuWeights, Device, Dtype, EngineSettings
from ..core.types import SamplingParams
from ..host.home import expand, home

ENV_PREFIX = "LORAMUX_"


class Address(NamedTuple):
    """A host and a TCP port; port 0 lets the system choose."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read ``host:port`` or ``[v6]:port``. Raises ValueError."""
        host, colon, port = text.rpartition(":")
        if not colon or not host or not (port.isascii() and port.isdigit() and len(port) <= 5 and int(port) <= 65535):
            raise ValueError("must be HOST:PORT, for example 127.0.0.1:50051 or [::1]:50051")
        bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
        if ":" in bare and bare == host:
            raise ValueError("an IPv6 address needs brackets, for example [::1]:50051")
        return cls(bare, int(port))


def _address(value: object) -> Address:
    if isinstance(value, Address):
        return value
    if not isinstance(value, str):
        raise ValueError("must be HOST:PORT, for example 127.0.0.1:50051")
    return Address.parse(value)


def _optional_address(value: object) -> Address | None:
    return None if value is None or value == "off" else _address(value)


def _state_home() -> Path:
    """Where the state goes unless a setting says so. Raises INVALID_ARGUMENT where there is no such place."""
    named = os.environ.get("XDG_STATE_HOME")
    place = Path(named) if named else (folder := home()) and folder / ".local" / "state"
    if place is None:
        raise invalid_field("--state-dir", "must be given: there is no home folder here (HOME is not set)")
    return place / "loramux"


def _path(value: object) -> object:
    if value == "":
        raise ValueError("must not be empty")
    if isinstance(value, str) and "\0" in value:
        raise ValueError("must be a path, which has no null character")
    return expand(value) if isinstance(value, str) else value


_as_text = PlainSerializer(str, return_type=str)
# NoDecode: pydantic-settings would read a tuple's environment variable as JSON.
ListenAddress = Annotated[Address, NoDecode, BeforeValidator(_address), _as_text]
OptionalAddress = Annotated[
    Address | None, NoDecode, BeforeValidator(_optional_address), PlainSerializer(lambda a: str(a) if a else "off")
]
Size = Annotated[ByteSize, Field(gt=0)]
Folder = Annotated[Path, BeforeValidator(_path), _as_text]
FileOrOff = Annotated[Path | Literal["off"], BeforeValidator(lambda v: v if v == "off" else _path(v)), _as_text]


def _setting(default: Any, group: str, metavar: str, description: str, **limits: Any) -> Any:
    """A leaf of the tree: its default, its place and placeholder in the help, its sentence, its limits."""
    kind = "default_factory" if callable(default) else "default"
    extra = {"group": group, "metavar": metavar}
    return Field(**{kind: default}, description=description, json_schema_extra=cast(Any, extra), **limits)


class TrainingSettings(BaseModel):
    """How training shares the device with serving."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    share: float = _setting(
        0.3,
        "Training",
        "SHARE",
        "part of the time that training gets while requests wait, 0 to 1",
        ge=0,
        le=1,
        allow_inf_nan=False,
    )
    slice_ms: int = _setting(
        100, "Training", "MS", "longest stretch of training between two serve steps, milliseconds", gt=0, le=60_000
    )
    activation_memory: Annotated[ByteSize, Field(ge=0)] | None = _setting(
        None,
        "Training",
        "SIZE",
        "memory for the activations of a micro-batch before gradient checkpointing starts, which is slower; 0: always"
        " checkpoint (default: a quarter of the free memory)",
    )
    checkpoint_seconds: float = _setting(
        30.0,
        "Training",
        "SECONDS",
        "longest time between two checkpoints of a job: what a crash may cost",
        ge=0,
        le=86_400,
        allow_inf_nan=False,
    )
    max_dataset_size: Size = _setting(ByteSize(256 << 20), "Training", "SIZE", "largest dataset that is taken")
    max_dataset_rows: int = _setting(200_000, "Training", "N", "most rows of a dataset", ge=1, le=100_000_000)
    max_row_tokens: int | None = _setting(
        None, "Training", "N", "longest row of a dataset in tokens (default: the model's context)", ge=2
    )


class LogSettings(BaseModel):
    """What is logged to standard error, and how."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    level: Literal["debug", "info", "warning", "error"] = _setting("info", "Logs", "LEVEL", "least level to log")
    format: Literal["console", "json"] = _setting("console", "Logs", "FORMAT", "for people or for programs")


class AuditSettings(BaseModel):
    """Where it is written down who changed what."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    log: FileOrOff | None = _setting(
        None, "Logs", "FILE|off", "file of the audit log, or off (default: audit/audit.jsonl in the state directory)"
    )
    size: Size = _setting(ByteSize(64 << 20), "Logs", "SIZE", "size at which a new file of the audit log begins")
    files: int = _setting(10, "Logs", "N", "older files of the audit log that are kept", ge=0, le=10_000)


class Settings(BaseSettings):
    """All that an operator may choose. Sizes in bytes, times in seconds unless the name says otherwise."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        env_prefix=ENV_PREFIX,
        env_nested_delimiter="__",
        env_ignore_empty=True,
        protected_namespaces=(),
    )

    model: str | None = _setting(
        None,
        "Model",
        "MODEL",
        "base model: folder, hub id or .gguf file (default: SmolLM2-135M-Instruct)",
        min_length=1,
    )
    device: Device = _setting("auto", "Model", "DEVICE", "where the model runs")
    dtype: Dtype = _setting("auto", "Model", "DTYPE", "precision of the computation; float32 is the exact mode")
    cpu_weights: CpuWeights = _setting(
        "auto", "Model", "HOW", "on a CPU, keep the 4-bit weights packed (less memory) or unpack them once (faster)"
    )
    threads: int | None = _setting(
        None, "Model", "N", "processor threads of the engine (default: affinity and quota)", ge=1, le=1024
    )

    listen: ListenAddress = _setting(
        Address("127.0.0.1", 50051), "Network", "HOST:PORT", "where the gRPC API listens; port 0: any free port"
    )
    metrics_listen: OptionalAddress = _setting(
        Address("127.0.0.1", 9464), "Network", "HOST:PORT", "where Prometheus metrics are served, or off"
    )
    drain_timeout: float = _setting(
        30.0,
        "Network",
        "SECONDS",
        "on a stop signal, time for running requests to finish",
        ge=0,
        le=86_400,
        allow_inf_nan=False,
    )

    state_dir: Folder = _setting(_state_home, "State", "DIR", "database, adapters, datasets and the model cache")
    database_url: SecretStr | None = _setting(
        None, "State", "URL", "SQL database of the registry (default: SQLite in the state directory)"
    )

    blobs_url: SecretStr | None = _setting(
        None,
        "State",
        "URL",
        "where the files of adapters and datasets are kept, a URL of fsspec such as s3://bucket/folder "
        "(default: the state directory)",
        min_length=1,
    )
    blobs_cache: Size | None = _setting(
        None, "State", "SIZE", "disk for local copies of files that are kept at --blobs-url (default: 8GiB)"
    )

    kv_cache_memory: Size | None = _setting(
        None, "Serving", "SIZE", "memory for keys and values, such as 512MiB (default: the engine chooses)"
    )
    adapter_memory: Size | None = _setting(
        None, "Serving", "SIZE", "memory for resident adapters, such as 256MiB (default: the engine chooses)"
    )
    adapter_host_memory: Size | None = _setting(
        None, "Serving", "SIZE", "host memory for adapters behind those on the device (default: the engine chooses)"
    )
    adapter_load_rate: float = _setting(
        0.0,
        "Serving",
        "N",
        "adapters that one tenant's requests may have read from disk per second; 0 is no limit",
        ge=0,
        le=1_000_000,
        allow_inf_nan=False,
    )
    max_batch_tokens: int = _setting(512, "Serving", "N", "tokens per serve step", ge=1, le=1_048_576)
    max_running: int = _setting(64, "Serving", "N", "generations in the batch at once", ge=1, le=65_536)
    max_queue: int = _setting(1024, "Serving", "N", "generations that may wait; more are refused", ge=0, le=1_048_576)
    default_max_tokens: int = _setting(
        SamplingParams().max_tokens,
        "Serving",
        "N",
        "length limit of an answer when the request names none",
        ge=1,
        le=1_048_576,
    )
    cuda_graphs: bool = _setting(
        True, "Serving", "", "replay decode steps as CUDA graphs, on a GPU and in 16-bit types"
    )

    max_training_jobs: int = _setting(4, "Training", "N", "training jobs at work at a time", ge=1, le=64)
    training: TrainingSettings = TrainingSettings()
    log: LogSettings = LogSettings()
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
            device=self.device,
            dtype=self.dtype,
            cpu_weights=self.cpu_weights,
            threads=self.threads,
            kv_cache_memory=_plain(self.kv_cache_memory),
            adapter_memory=_plain(self.adapter_memory),
            adapter_host_memory=_plain(self.adapter_host_memory),
            adapter_load_rate=self.adapter_load_rate,
            max_batch_tokens=self.max_batch_tokens,
            max_running=self.max_running,
            max_queue=self.max_queue,
            training_share=self.training.share,
            training_slice_ms=self.training.slice_ms,
            training_activation_memory=_plain(self.training.activation_memory),
            cuda_graphs=self.cuda_graphs,
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
    for name, info in model.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            yield from leaves(info.annotation, (*prefix, name))
        else:
            yield Leaf((*prefix, name), info)
