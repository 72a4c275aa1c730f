# Generated from _async/adapters.py by tools/sync_client.py (make client); do not edit.
"""The registry of adapters."""

from __future__ import annotations

import os
from collections.abc import Mapping

from .._wire import files
from .._wire.io_sync import blocking
from .._wire.messages import requests, responses
from .._wire.messages.fields import filled
from .._wire.messages.stacks import Adapters as Stack
from ..errors import nothing_to_roll_back
from ..types import Adapter, AdapterVersion
from ..v1 import adapters_pb2
from .transport import Transport


class Adapters:
    """The registry. A reference is ``name`` (the current version), ``name@3`` or ``name@alias``."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._stub = transport.adapters

    def list(self, *, prefix: str = "", limit: int | None = None) -> list[Adapter]:
        """The adapters that the caller may use, by name, ``limit`` at most."""
        request = filled(adapters_pb2.ListAdaptersRequest(), prefix=prefix)
        found = self._transport.items(self._stub.ListAdapters, request, "adapters", limit)
        return [responses.adapter(message) for message in found]

    def get(self, ref: str) -> Adapter:
        """An adapter with its versions."""
        request = filled(adapters_pb2.GetAdapterRequest(), adapter=ref)
        return responses.adapter(self._transport.unary(self._stub.GetAdapter, request))

    def upload(
        self,
        name: str,
        folder: str | os.PathLike[str],
        *,
        set_current: bool = True,
        metadata: Mapping[str, str] | None = None,
    ) -> AdapterVersion:
        """Publish a PEFT folder as the next version of ``name``; it can be used when this returns."""
        messages = blocking(files.upload_adapter, name, folder, set_current=set_current, metadata=metadata)
        return responses.adapter_version(self._transport.upload(self._stub.UploadAdapter, messages))

    def download(self, ref: str, folder: str | os.PathLike[str]) -> AdapterVersion:
        """Write a version as a PEFT folder (made if need be, files of the same names are replaced)."""
        request = filled(adapters_pb2.DownloadAdapterRequest(), adapter=ref)
        with files.AdapterWriter(folder) as writer:
            for message in self._transport.stream(self._stub.DownloadAdapter, request):
                blocking(writer.write, message)
            return writer.finish()

    def compose(
        self,
        name: str,
        adapters: Stack,
        *,
        method: str = "cat",
        rank: int | None = None,
        density: float | None = None,
        seed: int | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> AdapterVersion:
        """Merge a stack into the next version of ``name``; it can be used when this returns.

        ``cat`` is exact, its rank the sum of the parts'. ``svd`` is the best approximation of ``rank`` (None: the
        largest part's). ``linear``, ``ties``, ``dare_ties`` and ``magnitude_prune`` are PEFT's approximations for
        adapters of one rank; the last three keep a share ``density`` of the values, ``dare_ties`` draws them from
        ``seed``. The answer's ``composed.error`` is what the merge misses of the stack.
        """
        request = requests.compose(name, adapters, method, metadata, rank=rank, density=density, seed=seed)
        return responses.adapter_version((self._transport.unary(self._stub.ComposeAdapter, request)).version)

    merge = compose
    """The same under another name."""

    def delete(self, ref: str) -> int:
        """Delete a version, or with a plain name all of them; gives the number of versions that are gone."""
        request = filled(adapters_pb2.DeleteAdapterRequest(), adapter=ref)
        return (self._transport.unary(self._stub.DeleteAdapter, request)).versions_deleted

    def set_alias(self, name: str, version: int, *, alias: str = "") -> Adapter:
        """Make the plain name (or ``name@alias``) mean ``version``: promote or roll back. 0 removes an alias."""
        request = filled(adapters_pb2.SetAliasRequest(), name=name, version=version, alias=alias)
        return responses.adapter(self._transport.unary(self._stub.SetAlias, request))

    def promote(self, name: str, version: int) -> Adapter:
        """Make the plain name mean ``version`` from the next request on."""
        return self.set_alias(name, version)

    def rollback(self, name: str) -> Adapter:
        """Make the plain name mean the version again that it meant before; a second call undoes that.

        Raises FailedPrecondition when there is none.
        """
        previous = (self.get(name)).previous_version
        if not previous:
            raise nothing_to_roll_back(name)
        return self.set_alias(name, previous)

    def pin(self, ref: str) -> Adapter:
        """Keep a version resident."""
        request = filled(adapters_pb2.PinAdapterRequest(), adapter=ref)
        return responses.adapter(self._transport.unary(self._stub.PinAdapter, request))

    def unpin(self, ref: str) -> Adapter:
        """Let a version be evicted again."""
        request = filled(adapters_pb2.UnpinAdapterRequest(), adapter=ref)
        return responses.adapter(self._transport.unary(self._stub.UnpinAdapter, request))

    def share(self, ref: str) -> Adapter:
        """Publish a version of the caller's own adapter to all tenants, under the same name; for operators.

        Gives the shared adapter, whose versions have numbers of their own. Sharing another version moves it on.
        """
        request = filled(adapters_pb2.ShareAdapterRequest(), adapter=ref)
        return responses.adapter(self._transport.unary(self._stub.ShareAdapter, request))

    def unshare(self, name: str) -> int:
        """Take a shared adapter back; gives the number of shared versions that are gone. For operators.

        The caller's own adapter stays.
        """
        request = filled(adapters_pb2.UnshareAdapterRequest(), name=name)
        return (self._transport.unary(self._stub.UnshareAdapter, request)).versions_unshared
