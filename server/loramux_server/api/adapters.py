"""The adapter registry."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator

from loramux.v1 import adapters_pb2 as pb
from loramux.v1 import common_pb2

from ..core import call as calls
from ..core.errors import invalid_field
from ..services.availability import Availability
from ..services.common.types import FileSpec
from .convert.adapters import adapter_to_proto, compose_from_proto, version_to_proto
from .convert.common import from_proto, to_proto


class AdapterMethods:
    """``loramux.v1.AdapterService``."""

    def __init__(self, availability: Availability) -> None:
        self._open = availability.open

    async def ListAdapters(self, request: pb.ListAdaptersRequest) -> pb.ListAdaptersResponse:
        page = await self._open().adapters.list(
            calls.principal(),
            prefix=request.prefix,
            page_size=request.page_size or 100,
            page_token=request.page_token,
        )
        return pb.ListAdaptersResponse(
            adapters=[adapter_to_proto(a) for a in page.items], next_page_token=page.next_page_token
        )

    async def GetAdapter(self, request: pb.GetAdapterRequest) -> pb.Adapter:
        return adapter_to_proto(await self._open().adapters.get(request.adapter, calls.principal()))

    async def UploadAdapter(self, request_iterator: AsyncIterator[pb.UploadAdapterRequest]) -> pb.AdapterVersion:
        service = self._open().adapters
        first = await anext(request_iterator, None)
        if first is None or first.WhichOneof("payload") != "header":
            raise invalid_field("header", "the first message of an upload must carry it")
        header = first.header
        version = await service.upload(
            header.name,
            _pieces(request_iterator),
            calls.principal(),
            files=tuple(from_proto(FileSpec, f) for f in header.files),
            set_current=header.set_current if header.HasField("set_current") else True,
            metadata=dict(header.metadata),
        )
        return version_to_proto(version)

    async def DownloadAdapter(self, request: pb.DownloadAdapterRequest) -> AsyncGenerator[pb.DownloadAdapterResponse]:
        download = await self._open().adapters.download(request.adapter, calls.principal())
        yield pb.DownloadAdapterResponse(
            header=to_proto(pb.DownloadAdapterHeader, download, version=version_to_proto(download.version))
        )
        async for name, data in download.chunks:
            yield pb.DownloadAdapterResponse(chunk=common_pb2.FileChunk(name=name, data=data))

    async def DeleteAdapter(self, request: pb.DeleteAdapterRequest) -> pb.DeleteAdapterResponse:
        gone = await self._open().adapters.delete(request.adapter, calls.principal())
        return pb.DeleteAdapterResponse(versions_deleted=gone)

    async def SetAlias(self, request: pb.SetAliasRequest) -> pb.Adapter:
        service = self._open().adapters
        adapter = await service.set_alias(request.name, request.version, calls.principal(), alias=request.alias)
        return adapter_to_proto(adapter)

    async def PinAdapter(self, request: pb.PinAdapterRequest) -> pb.Adapter:
        return adapter_to_proto(await self._open().adapters.pin(request.adapter, calls.principal()))

    async def UnpinAdapter(self, request: pb.UnpinAdapterRequest) -> pb.Adapter:
        return adapter_to_proto(await self._open().adapters.unpin(request.adapter, calls.principal()))

    async def ComposeAdapter(self, request: pb.ComposeAdapterRequest) -> pb.ComposeAdapterResponse:
        wanted = compose_from_proto(request, calls.principal())
        return pb.ComposeAdapterResponse(version=version_to_proto(await self._open().adapters.compose(wanted)))

    async def ShareAdapter(self, request: pb.ShareAdapterRequest) -> pb.Adapter:
        return adapter_to_proto(await self._open().adapters.share(request.adapter, calls.principal()))

    async def UnshareAdapter(self, request: pb.UnshareAdapterRequest) -> pb.UnshareAdapterResponse:
        gone = await self._open().adapters.unshare(request.name, calls.principal())
        return pb.UnshareAdapterResponse(versions_unshared=gone)


async def _pieces(requests: AsyncIterator[pb.UploadAdapterRequest]) -> AsyncIterator[tuple[str, bytes]]:
    async for request in requests:
        if request.WhichOneof("payload") != "chunk":
            raise invalid_field("chunk", "every message after the first must carry a piece of a file")
        yield request.chunk.name, request.chunk.data
