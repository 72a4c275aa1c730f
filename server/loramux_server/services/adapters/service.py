"""The life of adapters: in, out, listed, renamed, pinned, deleted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from ...core.call import about
from ...core.callers.principal import Principal
from ...core.errors import Code, Error, invalid, invalid_field
from ...core.observing.observer import NullObserver, Observer
from ...core.reading.encodings import without_mark
from ...core.types import AdapterVersion
from ...peft.config import CONFIG_FILE, MAX_CONFIG_BYTES
from ...peft.schema import FINGERPRINT_KEY, AdapterConfig, check_folder
from ...store.adapters.refs import LATEST, check_name, parse_ref
from ...store.records import SHARED, AdapterMeta, VersionRecord, VersionState
from ...telemetry.logs import get_logger
from ..common.checks import check_result_name, metadata_violations
from ..common.context import Context
from ..common.shielding import temporary_folder
from ..common.types import FileSpec, Page
from ..common.uploads import receive_adapter
from .compose import ComposeService
from .compose_worker import Composer, run_composer
from .download import checked_files, read_files
from .publish import has_effect, publish
from .types import AdapterInfo, ComposeRequest, Download
from .views import AdapterViews

log = get_logger(__name__)

STATS_SECONDS = 1.0
"""Longest wait for the engine to say what is resident: it answers between two steps."""


class AdapterService:
    """Adapters of all tenants. A reference is ``name``, ``name@version`` or ``name@alias``.

    Another tenant's adapter is NOT_FOUND, and so is one that is not on the key's list. One that all tenants share can
    be used but not changed.
    """

    def __init__(self, context: Context, composer: Composer = run_composer, observer: Observer | None = None) -> None:
        self._observer = observer or NullObserver()
        self._backend, self._store = context.backend, context.store
        self._info, self._limits = context.info, context.limits
        self._views = AdapterViews(context.store, context.info)
        self._composing = ComposeService(context, composer)
        self._resident: dict[str, str] = {}
        self._pinning = asyncio.Lock()
        self._unused = context.unused

    async def list(
        self, principal: Principal, *, prefix: str = "", page_size: int = 100, page_token: str = ""
    ) -> Page[AdapterInfo]:
        """Adapters in order of name, without ``versions``."""
        tiers = await self._tiers()
        return await asyncio.to_thread(self._list, principal, prefix, page_size, page_token, tiers)

    async def get(self, ref: str, principal: Principal) -> AdapterInfo:
        """An adapter with all its versions; with ``name@version`` or ``name@alias``, with that version only."""
        tiers = await self._tiers()
        return await asyncio.to_thread(self._get, ref, principal, tiers)

    async def upload(
        self,
        name: str,
        chunks: AsyncIterator[tuple[str, bytes]],
        principal: Principal,
        *,
        files: tuple[FileSpec, ...] = (),
        set_current: bool = True,
        metadata: Mapping[str, str] | None = None,
    ) -> VersionRecord:
        """Publish a PEFT folder as the next version of ``name``.

        ``chunks`` gives (file name, next bytes of it): the pieces of one file follow each other. ``files`` says what
        will come, with sizes and hashes to check; empty: whatever comes. Answers only when the version can be used.
        Content that is a version of the name already gives that version. Raises INVALID_ARGUMENT,
        FAILED_PRECONDITION (other base), RESOURCE_EXHAUSTED (too large), PERMISSION_DENIED (a name that is not on the
        key's list); then nothing is stored.
        """
        about(name)
        check_result_name(name, principal)
        if violations := [*metadata_violations(metadata or {})]:
            raise invalid(violations)
        if size := sum(file.size for file in files):
            await asyncio.to_thread(self._store.quotas.check_announced, principal.tenant, size, size)
        async with temporary_folder(self._store, "upload") as folder:
            await receive_adapter(chunks, folder, files, self._limits.max_upload_bytes)
            config = await asyncio.to_thread(self._check, folder)
            effect = await asyncio.to_thread(has_effect, folder, config)
            meta = _meta(config, dict(metadata or {}), effect)
            record = await publish(
                self._backend,
                self._store,
                name,
                folder,
                config.rank,
                lambda: self._store.adapters.publish(name, principal.tenant, folder, meta, promote=set_current),
            )
        about(record.ref, current="yes" if set_current else "no")
        version = await self._version(record)
        for warning in version.warnings:
            log.warning("an uploaded adapter may not be meant", adapter=version.ref, warning=warning)
        return version

    async def download(self, ref: str, principal: Principal) -> Download:
        """The PEFT folder of a version, its files to be read from the answer's ``chunks``.

        Raises DATA_LOSS when weights or configuration are damaged; the version is quarantined then.
        """
        record = await asyncio.to_thread(self._store.adapters.get_version, ref, principal)
        located, files, lost = await asyncio.to_thread(checked_files, self._store, record)
        return Download(await self._version(record), files, read_files(self._store, located, files), lost)

    async def delete(self, ref: str, principal: Principal) -> int:
        """Delete one version, or with a bare name all of them; gives the number of versions that are gone.

        Requests that run finish with what they have; files go when nothing uses them any more.
        """
        about(ref)
        gone = await asyncio.to_thread(self._store.adapters.delete, ref, principal)
        about(ref, versions=", ".join(str(record.version) for record in gone))
        await self._forget(gone)
        return len(gone)

    async def share(self, ref: str, principal: Principal) -> AdapterInfo:
        """Publish a version of the caller's tenant to all tenants under its name, once that version is resident.

        Gives the shared adapter. Raises PERMISSION_DENIED where only the shared adapter has the name.
        """
        about(ref)
        version = await asyncio.to_thread(self._store.adapters.resolve, ref, principal)
        about(version.ref)
        await self._backend.load(version)
        record = await asyncio.to_thread(self._store.adapters.share, version.ref, principal)
        tiers = await self._tiers()
        return await asyncio.to_thread(self._views.adapter, record, tiers, versions=record.versions)

    async def unshare(self, name: str, principal: Principal) -> int:
        """Take a shared adapter back from all tenants; gives the number of shared versions that are gone.

        Requests that run finish with what they have. NOT_FOUND when no adapter of that name is shared.
        """
        about(name)
        gone = await asyncio.to_thread(self._store.adapters.unshare, name, principal)
        about(name, versions=", ".join(str(record.version) for record in gone))
        await self._forget(gone)
        return len(gone)

    async def set_alias(self, name: str, version: int, principal: Principal, *, alias: str = "") -> AdapterInfo:
        """Make the bare name (or ``name@alias``) mean ``version``, once that version is resident.

        0 removes the alias. Raises NOT_FOUND (version, or alias to remove), FAILED_PRECONDITION (quarantined).
        """
        about(f"{name}@{version}" if version else name, alias=alias or LATEST)
        check_name(name)
        if version == 0 and alias:
            await asyncio.to_thread(self._store.adapters.remove_alias, name, principal, alias)
            return await self.get(name, principal)
        if version < 1:
            hint = "" if version else "; 0 removes an alias, and the name itself cannot be removed but by deleting"
            raise invalid_field("version", f"is {version}; it must be at least 1{hint}")
        resolved = await asyncio.to_thread(self._store.adapters.resolve, f"{name}@{version}", principal)
        await self._backend.load(resolved)
        await asyncio.to_thread(self._store.adapters.set_alias, name, version, principal, alias or LATEST)
        return await self.get(name, principal)

    async def pin(self, ref: str, principal: Principal) -> AdapterInfo:
        """Load a version and keep it resident, also over restarts.

        Raises RESOURCE_EXHAUSTED when what is pinned would leave no room for the largest adapter beside it.
        """
        about(ref)
        async with self._pinning:
            version = await asyncio.to_thread(self._store.adapters.resolve, ref, principal)
            about(version.ref)
            await self._backend.load(version)
            await self._backend.pin([*await asyncio.to_thread(self._pinned), version])
            record = await asyncio.to_thread(self._store.adapters.pin, version.ref, principal)
        return await self.get(record.ref, principal)

    async def unpin(self, ref: str, principal: Principal) -> AdapterInfo:
        """Let a version be evicted again."""
        about(ref)
        async with self._pinning:
            record = await asyncio.to_thread(self._store.adapters.pin, ref, principal, False)
            about(record.ref)
            await self._keep_pinned()
        return await self.get(record.ref, principal)

    async def load_pinned(self) -> None:
        """When the engine is up: make resident what is pinned, as much of it as can be.

        A version that cannot be loaded must not keep the server down. Raises UNAVAILABLE when the engine is gone.
        """
        async with self._pinning:
            loaded: tuple[AdapterVersion, ...] = ()
            for version in await asyncio.to_thread(self._pinned):
                try:
                    await self._backend.load(version)
                    await self._backend.pin([*loaded, version])
                    loaded = (*loaded, version)
                except Error as error:
                    if error.code is Code.UNAVAILABLE:
                        raise
                    log.warning("a pinned adapter is not resident", adapter=version.ref, error=error.message)

    async def compose(self, request: ComposeRequest) -> VersionRecord:
        """Merge a stack into a new version; see :meth:`ComposeService.compose`."""
        about(request.name, method=request.method.value)
        record = await self._composing.compose(request)
        about(record.ref)
        return await self._version(record)

    async def _forget(self, gone: Sequence[VersionRecord]) -> None:
        """Let deleted versions leave memory, and have their files collected, unless others have the same content."""
        kept = await asyncio.to_thread(self._store.adapters.referenced_digests)
        if any(record.pinned for record in gone):
            async with self._pinning:
                await self._keep_pinned()
        for record in gone:
            if record.digest not in kept:
                await self._unload(record.digest)
        self._unused.set()
        for name in {record.name for record in gone}:
            owners = await asyncio.to_thread(self._store.adapters.owners, name)
            if SHARED not in owners:
                self._observer.adapter_deleted(name, owners)

    def _pinned(self) -> tuple[AdapterVersion, ...]:
        """What is pinned and has its files."""
        found: tuple[AdapterVersion, ...] = ()
        usable = [r for r in self._store.adapters.pinned() if r.state is VersionState.READY]
        for record in usable:
            with suppress(Error):  # gone from the disk: it is quarantined, and the log says so
                found = (*found, self._store.adapters.files.located(record))
        return found

    async def _keep_pinned(self) -> None:
        try:
            await self._backend.pin(await asyncio.to_thread(self._pinned))
        except Error as error:
            # An engine that is gone pins nothing; it gets the list when it is up again.
            if error.code is not Code.UNAVAILABLE:
                raise

    def _check(self, folder: Path) -> AdapterConfig:
        without_mark(folder / CONFIG_FILE, MAX_CONFIG_BYTES)  # which PEFT cannot read, and the folder goes out again
        return check_folder(
            folder, self._info.linear_modules, self._info.base_fingerprint, max_rank=self._limits.max_rank
        )

    def _list(
        self, principal: Principal, prefix: str, page_size: int, page_token: str, tiers: Mapping[str, str]
    ) -> Page[AdapterInfo]:
        records, next_page = self._store.adapters.list(
            principal, prefix=prefix, page_size=page_size, page_token=page_token
        )
        return Page(tuple(self._views.adapter(record, tiers) for record in records), next_page)

    def _get(self, ref: str, principal: Principal, tiers: Mapping[str, str]) -> AdapterInfo:
        parsed = parse_ref(ref)
        record = self._store.adapters.get(ref, principal)
        number = parsed.version if parsed.alias is None else record.aliases.get(parsed.alias)
        versions = record.versions if parsed.bare else tuple(v for v in record.versions if v.version == number)
        return self._views.adapter(record, tiers, versions=versions)

    async def _version(self, record: VersionRecord) -> VersionRecord:
        return await asyncio.to_thread(self._views.version, record, await self._tiers())

    async def _tiers(self) -> dict[str, str]:
        """Digest -> fastest tier, as of a moment ago if the engine is too busy to say.

        All on disk while the engine is away: lists are answered even then.
        """
        try:
            async with asyncio.timeout(STATS_SECONDS):
                resident = (await self._backend.stats()).resident
            self._resident = {digest: tier for tier in ("host", "device") for digest in resident.get(tier, ())}
        except TimeoutError:
            pass
        except Error:
            self._resident = {}
        return self._resident

    async def _unload(self, digest: str) -> None:
        try:
            await self._backend.unload(digest)
        except Error as error:
            # An engine that is gone holds nothing any more; what is deleted stays deleted.
            if error.code is not Code.UNAVAILABLE:
                raise


def _meta(config: AdapterConfig, metadata: dict[str, str], has_effect: bool) -> AdapterMeta:
    return AdapterMeta(
        rank=config.rank,
        alpha=config.alpha,
        base_fingerprint=config.metadata.get(FINGERPRINT_KEY, ""),
        target_modules=config.target_modules,
        layers=config.layers,
        metadata=metadata,
        without_effect=not has_effect,
    )
