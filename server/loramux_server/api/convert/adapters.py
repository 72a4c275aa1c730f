"""The adapter registry."""

from __future__ import annotations

from loramux.v1 import adapters_pb2 as pb

from ...core.callers.principal import Principal
from ...core.compose import ComposeMethod
from ...services.adapters.types import AdapterInfo, ComposeRequest
from ...store.records import VersionRecord
from .common import from_proto, to_proto, word


def compose_from_proto(request: pb.ComposeAdapterRequest, principal: Principal) -> ComposeRequest:
    """A merge as the caller wants it. Raises INVALID_ARGUMENT for a method that there is not."""
    method = word(pb.ComposeMethod.DESCRIPTOR, request.method, "method") or ComposeMethod.CAT
    return from_proto(ComposeRequest, request, method=method, principal=principal)


def version_to_proto(version: VersionRecord) -> pb.AdapterVersion:
    """One adapter version."""
    times = {"created_at": version.created, "last_used_at": version.last_used}
    return to_proto(pb.AdapterVersion, version, version.meta, state_reason=version.reason, **times)


def adapter_to_proto(adapter: AdapterInfo) -> pb.Adapter:
    """A name and the versions behind it."""
    current = version_to_proto(adapter.current) if adapter.current else None
    return to_proto(pb.Adapter, adapter, current=current, versions=map(version_to_proto, adapter.versions))
