"""Adapters in host memory: read from disk off the loop, once each, kept within a byte budget."""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

import torch

from ...core.errors import Code, Error, invalid_field
from ...core.observing.timeline import TIMELINE
from ...core.types import AdapterVersion
from ...lora.bank import HostAdapter, PackedAdapter
from ...model.out_of_memory import out_of_memory
from ...peft.folder import read_content
from ...store.blobs.reader import BlobReader

log = logging.getLogger(__name__)


class HostCache:
    """Reads adapters on a thread of its own, which packs them as a bank has them.

    The least recently used ones beyond the budget are dropped.

    All methods belong to the owner's thread except the read itself; ``on_read(digest)`` is called from the reading
    thread and must only wake the owner, who then calls :meth:`collect`.
    """

    def __init__(
        self,
        blobs: BlobReader,
        modules: Mapping[str, tuple[int, int]],
        fingerprint: str,
        budget: int,
        dtype: torch.dtype,
        pack: Callable[[HostAdapter], PackedAdapter],
        on_read: Callable[[str], object],
    ) -> None:
        self.budget, self._pack, self._on_read = budget, pack, on_read
        self._blobs, self._modules, self._fingerprint, self._dtype = blobs, modules, fingerprint, dtype
        self._adapters: OrderedDict[str, PackedAdapter] = OrderedDict()  # least recently used first
        self.nbytes = 0
        self.loads, self.load_seconds = 0, 0.0
        self._loading: dict[str, AdapterVersion] = {}
        self._done: dict[str, PackedAdapter | Error] = {}
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="adapter-reader")

    def get(self, digest: str) -> PackedAdapter | None:
        adapter = self._adapters.get(digest)
        if adapter is not None:
            self._adapters.move_to_end(digest)
        return adapter

    def request(self, version: AdapterVersion) -> None:
        """Start reading an adapter unless it is on its way. One that came here by :meth:`put` counts as read."""
        digest = version.digest
        if digest in self._loading:
            return
        self._loading[digest] = version
        if (here := self._adapters.get(digest)) is None:
            self._reader.submit(self._read, version)
        else:
            self._done[digest] = here
            self._on_read(digest)

    def collect(self, digest: str) -> Error | None:
        """Take in a finished read, over the budget if need be (see :meth:`trim`). The error is what it failed with."""
        self._loading.pop(digest, None)
        result = self._done.pop(digest)
        if isinstance(result, Error):
            return result
        self.put(result)
        return None

    def put(self, adapter: PackedAdapter) -> None:
        """Take in an adapter, over the budget if need be (see :meth:`trim`)."""
        self.drop(adapter.digest)
        self._adapters[adapter.digest] = adapter
        self.nbytes += adapter.nbytes

    def trim(self, claimed: Collection[str]) -> None:
        """Drop what is beyond the budget, but nothing ``claimed``. The newest stays even alone over the budget."""
        for digest in list(self._adapters)[:-1] if self.nbytes > self.budget else ():
            if self.nbytes <= self.budget:
                return
            if digest not in claimed:
                self.drop(digest)

    def size_of(self, digests: Iterable[str]) -> int:
        """Bytes that those of ``digests`` take that are here."""
        return sum(self._adapters[d].nbytes for d in digests if d in self._adapters)

    def drop(self, digest: str) -> None:
        if (adapter := self._adapters.pop(digest, None)) is not None:
            self.nbytes -= adapter.nbytes

    @property
    def digests(self) -> tuple[str, ...]:
        return tuple(self._adapters)

    def close(self) -> None:
        self._reader.shutdown(wait=True, cancel_futures=True)

    def _read(self, version: AdapterVersion) -> None:
        result: PackedAdapter | Error
        started = time.monotonic()
        try:
            # Errors name no version: tenants with the same content wait for one read.
            with TIMELINE.range("read adapter", digest=version.digest):
                pairs = read_content(self._blobs, version.digest, self._modules, self._fingerprint, dtype=self._dtype)
                adapter = HostAdapter(version.digest, pairs)
                if adapter.rank > version.rank:  # it might wait for ever for rows that its request did not ask for
                    raise invalid_field("rank", f"is {version.rank}; the adapter's files have rank {adapter.rank}")
                result = self._pack(adapter)
        except Error as error:
            result = error.with_traceback(None)
        except OSError as error:
            result = Error(Code.DATA_LOSS, f"its files cannot be read: {error.strerror}")
        except Exception as error:  # the requests that wait for the adapter must end
            if out_of_memory(error):
                result = Error(Code.RESOURCE_EXHAUSTED, "the host has no memory to read its files; try again later")
            else:
                log.exception("reading adapter %s failed", version.ref)
                result = Error(Code.INTERNAL, "its files cannot be read; the server's log says why")
        self.loads, self.load_seconds = self.loads + 1, self.load_seconds + time.monotonic() - started
        self._done[version.digest] = result
        self._on_read(version.digest)
