"""All methods of ``loramux.v1`` by their descriptors: a door serves what it finds here, and names none itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from loramux.v1 import adapters_pb2, inference_pb2, server_pb2, training_pb2, usage_pb2

from ..services.availability import Availability
from .adapters import AdapterMethods
from .inference import InferenceMethods
from .server_info import ServerMethods
from .training import TrainingMethods
from .usage import UsageMethods

_SERVICES: dict[Any, Callable[[Availability], object]] = {
    inference_pb2.DESCRIPTOR.services_by_name["InferenceService"]: InferenceMethods,
    adapters_pb2.DESCRIPTOR.services_by_name["AdapterService"]: AdapterMethods,
    training_pb2.DESCRIPTOR.services_by_name["TrainingService"]: TrainingMethods,
    server_pb2.DESCRIPTOR.services_by_name["ServerService"]: ServerMethods,
    usage_pb2.DESCRIPTOR.services_by_name["UsageService"]: UsageMethods,
}
"""What answers a service: an object with a method for each of its own, of the same name."""
SERVICES = tuple(service.full_name for service in _SERVICES)
METHODS = tuple(f"{service.full_name}/{method.name}" for service in _SERVICES for method in service.methods)
"""Full names, ``package.Service/Method``."""


@dataclass(frozen=True, slots=True)
class Method:
    """One method. ``answer`` takes a request, or an iterator of them, and gives what its descriptor says.

    A coroutine gives one response, an asynchronous generator a stream of them.
    """

    descriptor: MethodDescriptor
    answer: Callable[[Any], Any]

    @property
    def full_name(self) -> str:
        return f"{self.descriptor.containing_service.full_name}/{self.descriptor.name}"

    @property
    def request(self) -> type[Message]:
        return GetMessageClass(self.descriptor.input_type)

    @property
    def response(self) -> type[Message]:
        return GetMessageClass(self.descriptor.output_type)


def methods_of(availability: Availability) -> tuple[Method, ...]:
    """Every method, over the services that ``availability`` hands out."""
    return tuple(
        Method(method, getattr(answers, method.name))
        for service, make in _SERVICES.items()
        for answers in (make(availability),)
        for method in service.methods
    )
