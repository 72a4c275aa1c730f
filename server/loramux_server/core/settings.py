"""What the engine is told when it is built: plain values, no environment, no files of settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Device = Literal["auto", "cpu", "cuda"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
TrainingDtype = Literal["auto", "float32", "bfloat16"]
Weights = Literal["auto", "packed", "unpacked"]
Speculate = Literal["off", "ngram"]
AsyncScheduling = Literal["auto", "on", "off"]


@dataclass(frozen=True, slots=True)
class StepSize:
    """Most of a serve step: tokens, prefill and decode together, and sequences."""

    tokens: int
    sequences: int


STEP_SIZES = {"cpu": StepSize(512, 64), "cuda": StepSize(2048, 256)}
"""By type of device, unless the settings say otherwise.

Dequantising packed weights takes a GPU the same time whatever the tokens, and a decode step hardly more for more rows.
"""


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Settings of one engine. Sizes in bytes; ``None`` leaves the choice to the engine."""

    model: str | None = None
    """Folder, hub id or GGUF file; None: the default base."""
    state_dir: str = ""
    """Holds the NF4 cache and the folders of jobs."""
    blobs: str = ""
    """Folder with the adapters' files by digest, as a ``BlobReader`` takes it."""
    folders: tuple[str, ...] | None = None
    """Where jobs may write results and checkpoints; None: anywhere."""
    device: Device = "auto"
    dtype: Dtype = "auto"
    cpu_weights: Weights = "auto"
    gpu_weights: Weights = "auto"
    threads: int | None = None
    kv_cache_memory: int | None = None
    adapter_memory: int | None = None
    adapter_host_memory: int | None = None
    """For adapters kept in host memory behind those on the device."""
    adapter_load_rate: float = 0.0
    """Adapters that requests of one tenant may have read from disk per second; 0: no limit."""
    max_batch_tokens: int | None = None
    max_running: int | None = None
    max_queue: int = 1024
    tenant_slowdown: float = 1.2
    """How many times longer than alone the steps of the lightest tenant may be beside others'; 0: no bound."""
    training_share: float = 0.3
    """Share of the engine's time that training gets while requests wait, 0 to 1."""
    training_slice_ms: int = 100
    """Longest stretch of training between two serve steps, milliseconds."""
    training_activation_memory: int | None = None
    """Bytes of a micro-batch's activations before gradient checkpointing starts; None: a
    quarter of what is free when a job starts."""
    training_dtype: TrainingDtype = "auto"
    """Precision of activations in training; see ``ResidentBase.training_dtype``."""
    cuda_graphs: bool = True
    speculate: Speculate = "ngram"
    """Where drafts come from: ``ngram`` finds the last tokens earlier in the text; ``off``: there are none."""
    async_scheduling: AsyncScheduling = "auto"
    """Whether a step is launched before the tokens of the one before are handled; auto: on a GPU."""
    grammar_seconds: float = 2.0
    """Processor time that compiling a caller's grammar may take."""
    grammar_memory: int = 512 << 20
    """Memory that the process of a grammar may take beside the tokenizer."""

    def step_size(self, device_type: str) -> StepSize:
        """What a step may hold on a device of this type."""
        usual = STEP_SIZES[device_type]
        return StepSize(self.max_batch_tokens or usual.tokens, self.max_running or usual.sequences)
