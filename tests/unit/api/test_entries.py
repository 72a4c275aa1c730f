"""Lists of requests are bounded before anything is made of them."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from loramux.v1 import adapters_pb2, adapters_pb2_grpc, inference_pb2, inference_pb2_grpc, training_pb2
from loramux_server.api.entries import MAX_ENTRIES, check_entries
from loramux_server.core.errors import Code, Error
from tests.unit.rpc.scripted import open_door

REQUESTS = {
    method.input_type.full_name: method.input_type
    for module in (inference_pb2, adapters_pb2, training_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}


def with_entries(descriptor: Descriptor, count: int) -> Iterator[tuple[str, Message]]:
    """Requests of a type that each hold ``count`` entries in one list, which is named."""
    for field in descriptor.fields:
        made: Message = GetMessageClass(descriptor)()
        value = getattr(made, field.name)
        if hasattr(value, "__len__") and not isinstance(value, str | bytes):
            if field.message_type is None:
                value.extend(["" if field.type == FieldDescriptor.TYPE_STRING else 0] * count)
            elif field.message_type.GetOptions().map_entry:
                text = field.message_type.fields_by_name["key"].type == FieldDescriptor.TYPE_STRING
                for number in range(count):
                    key = str(number) if text else number
                    value[key] = type(value[key])()
            else:
                for _ in range(count):
                    value.add()
                inner = value[0].DESCRIPTOR.fields_by_name.get("entries")
                if inner is not None:  # as many in lists of lists
                    del value[1:]
                    for _ in range(count - 1):
                        value[0].entries.add()
            yield field.name, made
        elif field.message_type is not None:
            for name, part in with_entries(field.message_type, count):
                made = GetMessageClass(descriptor)()
                getattr(made, field.name).CopyFrom(part)
                yield f"{field.name}.{name}", made


def test_token_ids_cost_less_than_entries() -> None:
    def asked(texts: int, ids: int) -> inference_pb2.EmbedRequest:
        entry = inference_pb2.EmbedInput(token_ids=inference_pb2.TokenIds(ids=[5] * ids))
        return inference_pb2.EmbedRequest(input=[entry] * texts)

    check_entries(asked(2000, 400))
    for too_many in (asked(1, 64 * (MAX_ENTRIES + 1)), asked(2000, 1000), asked(MAX_ENTRIES + 1, 1)):
        with pytest.raises(Error, match="entries"):
            check_entries(too_many)


@pytest.mark.parametrize("name", REQUESTS)
def test_field_01_no_list_of_a_request_is_longer_than_the_bound(name: str) -> None:
    for _, request in with_entries(REQUESTS[name], MAX_ENTRIES):
        check_entries(request)
    for field, request in with_entries(REQUESTS[name], MAX_ENTRIES + 1):
        with pytest.raises(Error) as caught:
            check_entries(request)
        assert caught.value.code is Code.INVALID_ARGUMENT
        assert caught.value.violations[0].field.startswith(field)


async def test_field_01_millions_of_entries_are_refused_unread() -> None:
    async with open_door() as door:
        inference = inference_pb2_grpc.InferenceServiceStub(door.channel)
        adapters = adapters_pb2_grpc.AdapterServiceStub(door.channel)
        request = inference_pb2.GenerateRequest.FromString(b"\x12\x00" * (1 << 20))
        assert len(request.messages) == 1 << 20
        upload = adapters_pb2.UploadAdapterRequest()
        upload.header.files.extend([adapters_pb2.UploadAdapterHeader().files.add()] * (MAX_ENTRIES + 1))
        for field, call in (
            ("messages", inference.GenerateOnce(request)),
            ("header.files", adapters.UploadAdapter(iter([upload]))),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                await call
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert field in caught.value.details()
