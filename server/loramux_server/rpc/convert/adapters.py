"""The adapter registry."""

from __future__ import annotations

from loramux.v1 import adapters_pb2 as pb

from ...core.compose import ComposeMethod
from ...core.errors import invalid_field
from ...core.principal import Principal
from ...services.adapters.types import AdapterInfo, AdapterVersionInfo, ComposeRequest
from ...store.records import Composition
from .common import set_fields, stack_from_proto, stack_to_proto

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
METHODS: dict[pb.ComposeMethod.ValueType, ComposeMethod] = {
    pb.COMPOSE_METHOD_CAT: ComposeMethod.CAT,
    pb.COMPOSE_METHOD_SVD: ComposeMethod.SVD,
    pb.COMPOSE_METHOD_LINEAR: ComposeMethod.LINEAR,
    pb.COMPOSE_METHOD_TIES: ComposeMethod.TIES,
    pb.COMPOSE_METHOD_DARE_TIES: ComposeMethod.DARE_TIES,
    pb.COMPOSE_METHOD_MAGNITUDE_PRUNE: ComposeMethod.MAGNITUDE_PRUNE,
}
_METHOD_NUMBERS = {method: number for number, method in METHODS.items()}


def compose_from_proto(request: pb.ComposeAdapterRequest, principal: Principal) -> ComposeRequest:
    """A merge as the caller wants it. Raises INVALID_ARGUMENT for a method that there is not."""
    method = METHODS.get(request.method or pb.COMPOSE_METHOD_CAT)
    if method is None:
        raise invalid_field("method", f"{request.method} is no method of composing")
    return ComposeRequest(
        name=request.name,
        adapters=stack_from_proto(request.adapters),
        method=method,
        metadata=dict(request.metadata),
        principal=principal,
        **set_fields(request, ("rank", "density", "seed")),
    )


def composed_to_proto(composed: Composition) -> pb.Composition:
    """How a version was merged."""
    return pb.Composition(
        method=_METHOD_NUMBERS[ComposeMethod(composed.method)],
        stack=stack_to_proto(composed.stack),
        error=composed.error,
        rank=composed.rank,
        density=composed.density,
        seed=composed.seed,
    )


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
        gate_result=version.gate_result,
        dataset_digest=version.dataset_digest,
        parent=version.parent,
        trained_on=[stack_to_proto(s) for s in version.trained_on],
        asked_with=version.asked_with,
        for_other_base=version.for_other_base,
        warnings=version.warnings,
        composed=composed_to_proto(version.composed) if version.composed else None,
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
        previous_version=adapter.previous_version,
        created_at=adapter.created_at,
        updated_at=adapter.updated_at,
    )
