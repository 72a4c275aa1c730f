"""From the store's records to what the services answer about adapters."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from ..core.backend import EngineInfo
from ..core.errors import Code, Error
from ..lora.lora_config import LoraConfig
from ..lora.peft_config import CONFIG_FILE, MAX_CONFIG_BYTES, parse_config
from ..store.records import AdapterRecord, VersionRecord
from ..store.refs import LATEST
from ..store.store import Store
from .views import AdapterInfo, AdapterVersionInfo

MAX_RANK = 1 << 20
"""For reading again what was checked against the real limit when it came in."""


class AdapterViews:
    """Makes views of records. Reads small files: call it off the event loop."""

    def __init__(self, store: Store, info: EngineInfo) -> None:
        self._store = store
        self._info = info
        self._config = lru_cache(maxsize=8192)(self._read_config)

    def adapter(
        self, record: AdapterRecord, tiers: Mapping[str, str], *, versions: tuple[VersionRecord, ...] = ()
    ) -> AdapterInfo:
        """An adapter; ``versions`` are those to show, ``tiers`` maps digests to the fastest place they are in."""
        current = record.current
        return AdapterInfo(
            name=record.name,
            tenant=record.owner,
            current=None if current is None else self.version(current, tiers),
            versions=tuple(self.version(v, tiers) for v in sorted(versions, key=lambda v: -v.version)),
            aliases={alias: version for alias, version in record.aliases.items() if alias != LATEST},
            previous_version=record.previous,
            created_at=record.created,
            updated_at=max((v.created for v in record.versions), default=record.created),
        )

    def version(self, record: VersionRecord, tiers: Mapping[str, str]) -> AdapterVersionInfo:
        """One version."""
        meta, config = record.meta, self._config(record.digest)
        return AdapterVersionInfo(
            name=record.name,
            version=record.version,
            digest=record.digest,
            rank=meta.rank,
            alpha=meta.alpha,
            rslora=config.rslora if config else False,
            target_modules=meta.target_modules,
            size_bytes=record.size_bytes,
            layers=meta.layers or (),
            base_name=self._base_name(record, config),
            base_fingerprint=meta.base_fingerprint,
            created_at=record.created,
            state=record.state.value,
            state_reason=record.reason,
            job_id=meta.job_id,
            gate_result=self._gate_result(record),
            dataset_digest=meta.dataset_digest,
            parent=meta.parent,
            trained_on=meta.trained_on,
            asked_with=meta.asked_with,
            composed=meta.composed,
            metrics=meta.metrics,
            metadata=meta.metadata,
            tier=tiers.get(record.digest, "disk"),
            pinned=record.pinned,
            last_used_at=record.last_used or 0.0,
        )

    def _gate_result(self, record: VersionRecord) -> str:
        """What the job that made a version said about promoting it."""
        try:
            job = self._store.jobs.get(record.meta.job_id) if record.meta.job_id else None
        except Error as error:
            if error.code is not Code.NOT_FOUND:
                raise
            return ""
        return job.gate_result if job and job.adapter == record.ref else ""

    def _base_name(self, record: VersionRecord, config: LoraConfig | None) -> str:
        if record.meta.base_fingerprint == self._info.base_fingerprint:
            return self._info.base_name
        return config.base_name if config else ""

    def _read_config(self, digest: str) -> LoraConfig | None:
        """The adapter's own settings; None if its files are gone: a list must still be shown then."""
        try:
            return parse_config(self._store.blobs.read(digest, CONFIG_FILE, MAX_CONFIG_BYTES), max_rank=MAX_RANK)
        except (Error, OSError):
            return None
