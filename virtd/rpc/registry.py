"""From a service's descriptor and a servicer to gRPC's handlers.

The generated ``add_..._to_server`` functions would do, but for two things: answers that are encoded
already (lists and watches are joins of cached bytes) pass through the serializer as they are, and a
request that cannot be decoded becomes an INVALID_ARGUMENT of ours instead of gRPC's UNKNOWN.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from virtd.rpc.interceptors import MalformedRequest


def handlers(descriptor: ServiceDescriptor, servicer: object, name: str = "") -> grpc.GenericRpcHandler:
    """The handlers of a service.

    :param servicer: has a method of each RPC's name, taking ``(request, context)``.
    :param name: serve it under this name instead of its own.
    :raises AttributeError: the servicer lacks a method.
    """
    return grpc.method_handlers_generic_handler(
        name or descriptor.full_name,
        {method.name: _handler(method, getattr(servicer, method.name)) for method in descriptor.methods},
    )


def _handler(method: MethodDescriptor, behaviour: Callable[..., Any]) -> Any:
    if method.client_streaming:
        make: Any = grpc.stream_stream_rpc_method_handler
    elif method.server_streaming:
        make = grpc.unary_stream_rpc_method_handler
    else:
        make = grpc.unary_unary_rpc_method_handler
    return make(
        behaviour,
        request_deserializer=_parser(GetMessageClass(method.input_type)),
        response_serializer=serialize,
    )


def serialize(answer: Message | bytes) -> bytes:
    """The bytes of an answer, which may be bytes already."""
    return answer if isinstance(answer, bytes) else answer.SerializeToString()


def _parser(message_type: type[Message]) -> Callable[[bytes], Message | MalformedRequest]:
    def parse(data: bytes) -> Message | MalformedRequest:
        try:
            return message_type.FromString(data)
        except DecodeError:
            return MalformedRequest()

    return parse
