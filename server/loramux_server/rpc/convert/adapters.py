"""The adapter registry."""

from __future__ import annotations

from loramux.v1 import adapters_pb2 as pb

from ...services.views import AdapterInfo, AdapterVersionInfo
from .common import stack_to_proto

STATES: dict[str, pb.AdapterState.ValueType] = {
    "ready": pb.ADAPTER_STATE_READY,
    "quarantined": pb.ADAPTER_STATE_QUARANTINED,
    "deleted": pb.ADAPTER_STATE_DELETED,
}
TIERS: dict[str, pb.AdapterTier.ValueType] = {
    "device": pb.ADAPTER_TIER_DEVICE,
    "host": pb.ADAPTER_TIER_HOST,
    "disk": pb.ADAPTER_TIER_DISK,
}
METHODS: dict[pb.ComposeMethod.ValueType, str] = {
    pb.COMPOSE_METHOD_UNSPECIFIED: "cat",
    pb.COMPOSE_METHOD_CAT: "cat",
    pb.COMPOSE_METHOD_SVD: "svd",
    pb.COMPOSE_METHOD_LINEAR: "linear",
    pb.COMPOSE_METHOD_TIES: "ties",
    pb.COMPOSE_METHOD_DARE_TIES: "dare_ties",
    pb.COMPOSE_METHOD_MAGNITUDE_PRUNE: "magnitude_prune",
}


def version_to_proto(version: AdapterVersionInfo) -> pb.AdapterVersion:
    """One adapter version."""
    return pb.AdapterVersion(
        name=version.name,
        version=version.version,
        digest=version.digest,
        rank=version.rank,
        alpha=version.alpha,
        rslora=version.rslora,
        target_modules=version.target_modules,
        layers=version.layers,
        size_bytes=version.size_bytes,
        base_name=version.base_name,
        base_fingerprint=version.base_fingerprint,
        created_at=version.created_at,
        state=STATES[version.state],
        state_reason=version.state_reason,
        job_id=version.job_id,
        dataset_digest=version.dataset_digest,
        parent=version.parent,
        trained_on=[stack_to_proto(s) for s in version.trained_on],
        metrics=version.metrics,
        metadata=version.metadata,
        tier=TIERS[version.tier],
        pinned=version.pinned,
        last_used_at=version.last_used_at,
    )


def adapter_to_proto(adapter: AdapterInfo) -> pb.Adapter:
    """A name and the versions behind it."""
    return pb.Adapter(
        name=adapter.name,
        tenant=adapter.tenant,
        current=version_to_proto(adapter.current) if adapter.current else None,
        versions=[version_to_proto(v) for v in adapter.versions],
        aliases=adapter.aliases,
        created_at=adapter.created_at,
        updated_at=adapter.updated_at,
    )
