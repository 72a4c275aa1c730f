"""Puts an engine together from its settings. Called on the thread that will own the model."""

from __future__ import annotations

import queue
from collections.abc import Callable
from pathlib import Path

import torch

from ..core.backend import EngineInfo
from ..core.background import Background
from ..core.settings import EngineSettings
from ..cpu import native
from ..lora.bank import AdapterBank
from ..model.base.context_length import max_context
from ..model.base.load import resolve_device
from ..model.base.quantize import Prepared
from ..model.kv import KVPool
from ..model.resident import Progress, ResidentBase
from ..store.blobs.reader import BlobReader
from ..text.tokenizer import TextTokenizer
from .execution.capture import CudaCapture
from .execution.graph_families import StepGraphs, graph_bytes
from .execution.model_runner import ModelRunner
from .gpu import serve_first
from .grammar.masks import GrammarMasks
from .inbox import AdapterRead, Inbox, MaskReady, ProfileWritten
from .loop import EngineLoop
from .memory import check_room, plan_memory
from .memory_kinds import MemoryKinds
from .profiling.profiler import Profiler
from .residency.cache import HostCache
from .residency.load_quota import LoadQuota
from .residency.manager import ResidencyManager
from .scheduling.drafts import ROW_COST, WAIT_COST, NgramDrafter
from .scheduling.pages import PagePool, prefix_root
from .scheduling.plan import StepLimits
from .scheduling.scheduler import Scheduler
from .transport.protocol import Output

MakeBackground = Callable[[ResidentBase, BlobReader, int | None], Background]
"""Makes the training side from the resident base, the reader of adapters, and the bytes of activations before
gradient checkpointing."""


def build_engine(
    settings: EngineSettings,
    make_background: MakeBackground,
    salt: Callable[[str], bytes],
    emit: Callable[[list[Output]], object],
    progress: Progress,
    prepared: Prepared,
) -> tuple[EngineLoop, EngineInfo]:
    """Load the base and set up everything around it. ``salt`` gives a tenant's secret prefix-cache salt."""
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    if settings.state_dir:
        native.keep_in(Path(settings.state_dir))
    folder = prepared.folder
    progress("loading the base", None)
    check_room(settings, folder)
    serve_first(resolve_device(settings.device))
    base = ResidentBase.load(settings, folder)
    progress("setting up memory", None)
    shape = base.kv_shape
    # Without a kernel that reads pages in place, a step's shapes follow the longest context in it.
    graphed = settings.cuda_graphs and shape.kernel
    size = settings.step_size(base.device.type)
    most = min(size.sequences, size.tokens)
    plan = plan_memory(
        settings,
        base.device,
        shape.page_bytes(base.dtype),
        AdapterBank.row_bytes(base.groups, base.dtype),
        graph_bytes(base, most, size.tokens) if graphed else 0,
    )
    kv = KVPool(shape, plan.kv_pages, base.device, base.dtype)
    bank = AdapterBank(base.groups, plan.adapter_rows, base.device, base.dtype)
    graphs = None
    if graphed:
        graphs = StepGraphs(base, kv, bank, most, size.tokens, CudaCapture(base.device))
        progress("capturing CUDA graphs", None)
        graphs.prepare()
    inbox: Inbox = queue.SimpleQueue()
    blobs = BlobReader(Path(settings.blobs))
    cache = HostCache(
        blobs,
        base.modules,
        base.fingerprint,
        plan.host_bytes,
        base.dtype,
        bank.pack,
        lambda digest: inbox.put(AdapterRead(digest)),
    )
    residency = ResidencyManager(bank, cache, LoadQuota(settings.adapter_load_rate))
    vocab_size = int(base.model.config.vocab_size)
    eos = tuple(id for id in TextTokenizer.load(folder).eos_token_ids if id < vocab_size)
    grammars = GrammarMasks(
        folder,
        eos,
        lambda: inbox.put(MaskReady()),
        compile_seconds=settings.grammar_seconds,
        memory=settings.grammar_memory,
    )
    base_id = f"{base.fingerprint}/{base.dtype}"
    costs = ROW_COST[base.device.type, base.dtype.itemsize], WAIT_COST[base.device.type]
    scheduler = Scheduler(
        PagePool(plan.kv_pages, shape.page_size),
        StepLimits(size.tokens, size.sequences, settings.max_queue, settings.tenant_slowdown),
        residency,
        lambda seq: prefix_root(base_id, salt(seq.tenant), seq.stack),
        ready=grammars.ready,
        drafter=NgramDrafter(*costs) if settings.speculate == "ngram" else None,
    )

    config = base.model.config
    info = EngineInfo(
        base_name=base.name,
        base_fingerprint=base.fingerprint,
        architecture=(getattr(config, "architectures", None) or [type(base.model).__name__])[0],
        vocab_size=vocab_size,
        max_context=max_context(base.model),
        eos_token_ids=eos,
        device=str(base.device),
        dtype=str(base.dtype).removeprefix("torch."),
        num_layers=shape.layers,
        linear_modules=dict(base.modules),
        tokenizer_path=str(folder),
        base_revision=base.revision,
        hidden_size=int(base.model.get_output_embeddings().weight.shape[1]),
        training_dtype=str(base.training_dtype).removeprefix("torch."),
        kv_page_tokens=shape.page_size,
        base_damage=prepared.damage,
        max_batch_tokens=size.tokens,
        max_running=size.sequences,
        weight_bytes=base.weight_bytes,
        weight_bytes_16bit=base.weight_bytes_16bit,
        weights="packed" if base.packed else "unpacked",
    )
    loop = EngineLoop(
        settings,
        inbox,
        ModelRunner(base, kv, bank, graphs),
        scheduler,
        residency,
        grammars,
        make_background(base, blobs, settings.training_activation_memory),
        info,
        emit,
        MemoryKinds(base, bank, cache, kv, graphs).read,
        Profiler(base.device, f"engine of {base.name}", lambda id: inbox.put(ProfileWritten(id))),
    )
    return loop, info
