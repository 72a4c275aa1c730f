"""From the store's records to what the services answer about adapters."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache

from ...core.backend import EngineInfo
from ...core.errors import Error, is_damage
from ...peft.config import CONFIG_FILE, MAX_CONFIG_BYTES, parse_config, shown
from ...peft.lora_config import LoraConfig
from ...store.adapters.refs import LATEST
from ...store.records import AdapterRecord, VersionRecord
from ...store.store import Store
from .types import AdapterInfo

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
            shared=record.shared,
            created_at=record.created,
            updated_at=max((v.created for v in record.versions), default=record.created),
        )

    def version(self, record: VersionRecord, tiers: Mapping[str, str]) -> VersionRecord:
        """One version, with what its files and this server say about it."""
        config = self._config_of(record.digest)
        return replace(
            record,
            rslora=config.rslora if config else False,
            base_name=self._base_name(record, config),
            for_other_base=self._for_other_base(record),
            warnings=tuple(self._warnings(record, config)),
            tier=tiers.get(record.digest, "disk"),
        )

    def _for_other_base(self, record: VersionRecord) -> bool:
        made_for = record.meta.base_fingerprint
        return bool(made_for) and made_for != self._info.base_fingerprint

    def _warnings(self, record: VersionRecord, config: LoraConfig | None) -> Iterator[str]:
        """What does not keep a version from being served, but may not be meant."""
        if self._for_other_base(record):
            made_for = self._base_name(record, config) or "an unknown one"
            yield f"it was made for another base ({made_for}) and cannot be used here"
        elif config and not record.meta.base_fingerprint and not same_base(config.base_name, self._info.base_name):
            yield (
                f"its adapter_config.json names the base {shown(config.base_name)}, and this server has"
                f" {self._info.base_name}: the shapes fit, the answers may not"
            )
        if record.meta.without_effect:
            yield "it changes nothing: lora_A or lora_B is zero in every module, so it answers as the base does"

    def _base_name(self, record: VersionRecord, config: LoraConfig | None) -> str:
        if record.meta.base_fingerprint == self._info.base_fingerprint:
            return self._info.base_name
        return config.base_name if config else ""

    def _config_of(self, digest: str) -> LoraConfig | None:
        """The adapter's own settings; None if they are damaged or gone: a list must still be shown then."""
        try:
            return self._config(digest)
        except Error as error:
            if is_damage(error):
                with suppress(Error):
                    self._store.adapters.files.mark_damaged(digest, error.message)
        except OSError:
            pass
        return None

    def _read_config(self, digest: str) -> LoraConfig:
        return parse_config(self._store.blobs.read(digest, CONFIG_FILE, MAX_CONFIG_BYTES), max_rank=MAX_RANK)


def same_base(theirs: str, ours: str) -> bool:
    """Whether two names of bases may mean one model: owner, case and marks of a quantised copy do not count."""
    return not theirs or _model(theirs) == _model(ours)


def _model(name: str) -> str:
    words = re.split(r"[-_.\s]+", name.replace("\\", "/").rstrip("/").rpartition("/")[2].lower())
    return "-".join(word for word in words if word not in _COPIES)


_COPIES = {
    *("bnb", "4bit", "8bit", "nf4", "unsloth", "gguf", "hf", "bf16", "fp16", "q4", "q8"),
    *("awq", "gptq", "mlx", "dynamic"),
}
"""Parts of a name that say how a copy is stored, not which model it is."""
