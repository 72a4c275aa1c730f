"""Stacks, messages, usage and files: what several services share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from google.protobuf.message import Message as ProtoMessage

from loramux.v1 import common_pb2

from ...core.types import Message, StackEntry, StackItem, Usage
from ...services.common.types import FileSpec


def set_fields(message: ProtoMessage, names: Iterable[str]) -> dict[str, Any]:
    """Those of ``names`` that the caller set, with their values."""
    return {name: getattr(message, name) for name in names if message.HasField(name)}


def stack_from_proto(entries: Iterable[common_pb2.StackEntry]) -> tuple[StackItem, ...]:
    """A stack as the caller wrote it."""
    return tuple(StackItem(e.adapter, e.weight if e.HasField("weight") else 1.0) for e in entries)


def stack_to_proto(items: Iterable[StackItem]) -> common_pb2.Stack:
    """A stack as the API shows it, weights always set."""
    return common_pb2.Stack(entries=[common_pb2.StackEntry(adapter=i.adapter, weight=i.weight) for i in items])


def stacks_from_proto(stacks: Iterable[common_pb2.Stack]) -> tuple[tuple[StackItem, ...], ...]:
    """Several stacks; an empty one is the bare base."""
    return tuple(stack_from_proto(s.entries) for s in stacks)


def applied_to_proto(entries: Iterable[StackEntry]) -> list[common_pb2.AppliedAdapter]:
    """The versions that answered."""
    return [
        common_pb2.AppliedAdapter(
            name=e.adapter.name, version=e.adapter.version, digest=e.adapter.digest, weight=e.weight
        )
        for e in entries
    ]


def messages_from_proto(messages: Iterable[common_pb2.Message]) -> tuple[Message, ...]:
    """The turns of a chat."""
    return tuple(Message(m.role, m.content, m.weight if m.HasField("weight") else 1.0) for m in messages)


def usage_to_proto(usage: Usage) -> common_pb2.Usage:
    """Token counts."""
    return common_pb2.Usage(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        cached_tokens=usage.cached_tokens,
        total_tokens=usage.total_tokens,
    )


def file_from_proto(file: common_pb2.FileInfo) -> FileSpec:
    """A file that will come."""
    return FileSpec(file.name, file.size, file.sha256)


def file_to_proto(file: FileSpec) -> common_pb2.FileInfo:
    """A file that is going out."""
    return common_pb2.FileInfo(name=file.name, size=file.size, sha256=file.sha256)
