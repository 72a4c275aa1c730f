"""The description of the server."""

from __future__ import annotations

from typing import Any

from loramux.v1 import server_pb2 as pb

from ...core.backend import EngineStats, Replica
from ...core.bounds import MAX_STACK
from ...core.callers.principal import Principal
from ...core.jobs import JobState, TrainSpec
from ...services.availability import ServerInfo
from ...services.stats import AdapterActivity, JobActivity, ServerStats
from .common import to_proto


def server_info_to_proto(info: ServerInfo, caller: Principal) -> pb.ServerInfo:
    """What the server is and has, and who asks; parts that are not known yet stay unset."""
    given: dict[str, Any] = {"state": info.readiness, "uptime_seconds": info.uptime, "adapters_total": info.adapters}
    allowed = sorted(caller.adapters or ())
    given["caller"] = to_proto(pb.Caller, caller, scopes=sorted(caller.scopes), allowed_adapters=allowed)
    if (engine := info.engine) is not None:
        base = to_proto(
            pb.BaseInfo,
            engine,
            name=engine.base_name,
            fingerprint=engine.base_fingerprint,
            revision=engine.base_revision,
        )
        given |= {"base": base, "tokenizer": to_proto(pb.TokenizerInfo, engine, info)}
        given["training_job_bytes"] = engine.training_bytes(TrainSpec().rank)
    if (stats := info.stats) is not None:
        given |= _engine(stats)
    sources = [each for each in (info, engine, stats) if each is not None]
    limits = None if info.limits is None else to_proto(pb.Limits, info.limits, *sources, max_stack=MAX_STACK)
    return to_proto(pb.ServerInfo, *sources, limits=limits, **given)


def stats_to_proto(stats: ServerStats) -> pb.ServerStats:
    """What the server did in the last seconds; what the caller may not know stays unset."""
    given: dict[str, Any] = {"adapters": map(_adapter, stats.adapters), "jobs": map(_job, stats.jobs)}
    engine = stats.engine
    if engine is None:
        return to_proto(pb.ServerStats, stats, **given)
    given |= {**_engine(engine), "adapter_bytes": engine.resident_bytes, "training_jobs": len(engine.training_jobs)}
    return to_proto(pb.ServerStats, stats, engine, **given)


def replica_to_proto(replica: Replica) -> pb.Replica:
    """One engine and what it does."""
    return to_proto(
        pb.Replica,
        replica,
        requests_running=replica.running,
        requests_waiting=replica.waiting,
        adapters=len(replica.resident),
    )


def _adapter(adapter: AdapterActivity) -> pb.AdapterActivity:
    if (version := adapter.version) is None:
        return to_proto(pb.AdapterActivity, adapter, adapter.use)
    named = {"adapter": version.ref, "tenant": version.owner, "rank": version.meta.rank}
    return to_proto(pb.AdapterActivity, adapter, adapter.use, version, **named)


def _job(job: JobActivity) -> pb.JobActivity:
    record, metrics = job.record, job.record.metrics
    given: dict[str, Any] = {"job_id": record.id, "name": record.request.name, "tenant": record.request.tenant}
    given["loss"] = metrics.get("loss")
    if record.state is JobState.RUNNING:
        given |= {name: metrics.get(name) for name in ("eta_seconds", "tokens_per_second")}
    return to_proto(pb.JobActivity, job, record, **given)


def _engine(stats: EngineStats) -> dict[str, Any]:
    """Figures of the engine that have other names there."""
    return {
        "memory_bytes": stats.memory,
        "adapters_resident": {tier: len(digests) for tier, digests in stats.resident.items()},
        "requests_running": stats.running,
        "requests_waiting": stats.waiting,
    }
