"""The description of the server."""

from __future__ import annotations

from loramux.v1 import server_pb2 as pb

from ...core.types import MAX_STACK
from ...services.availability import Readiness, ServerInfo

STATES: dict[Readiness, pb.ServerState.ValueType] = {
    Readiness.STARTING: pb.SERVER_STATE_STARTING,
    Readiness.LOADING: pb.SERVER_STATE_LOADING,
    Readiness.WARMING: pb.SERVER_STATE_WARMING,
    Readiness.READY: pb.SERVER_STATE_READY,
    Readiness.DRAINING: pb.SERVER_STATE_DRAINING,
    Readiness.FAILED: pb.SERVER_STATE_FAILED,
}


def server_info_to_proto(info: ServerInfo) -> pb.ServerInfo:
    """What the server is and has; parts that are not known yet stay unset."""
    message = pb.ServerInfo(
        version=info.version,
        state=STATES[info.readiness],
        uptime_seconds=info.uptime,
        adapters_total=info.adapters,
        jobs=info.jobs,
    )
    if (engine := info.engine) is not None:
        message.base.CopyFrom(
            pb.BaseInfo(
                name=engine.base_name,
                fingerprint=engine.base_fingerprint,
                architecture=engine.architecture,
                max_context=engine.max_context,
                num_layers=engine.num_layers,
            )
        )
        message.tokenizer.CopyFrom(
            pb.TokenizerInfo(
                vocab_size=engine.vocab_size,
                eos_token_ids=engine.eos_token_ids,
                has_chat_template=info.has_chat_template,
            )
        )
        message.device, message.dtype = engine.device, engine.dtype
    if (stats := info.stats) is not None:
        message.memory_bytes.update(stats.memory)
        message.adapters_resident.update({tier: len(digests) for tier, digests in stats.resident.items()})
        message.requests_running, message.requests_waiting = stats.running, stats.waiting
        message.kv_pages_used, message.kv_pages_total = stats.kv_pages_used, stats.kv_pages_total
    if (limits := info.limits) is not None:
        message.limits.CopyFrom(
            pb.Limits(
                max_stack=MAX_STACK,
                max_choices=limits.max_choices,
                max_prompt_bytes=limits.max_prompt_bytes,
                max_new_tokens=limits.max_new_tokens,
                max_rank=limits.max_rank,
                max_upload_bytes=limits.max_upload_bytes,
                max_dataset_bytes=limits.max_dataset_bytes,
            )
        )
    return message
