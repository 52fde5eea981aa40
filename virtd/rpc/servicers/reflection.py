"""grpc.reflection, in its present version and the alpha one, which are the same but for the name.

The library has the alpha version only, while today's tools ask for v1 first.  The messages are
equal on the wire, so one servicer answers both; v1's descriptor is made from the other one, so that
reflection can describe itself under both names.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.descriptor import ServiceDescriptor
from grpc_reflection.v1alpha import reflection, reflection_pb2

_ALPHA: Final = "grpc.reflection.v1alpha"
_V1: Final = "grpc.reflection.v1"
_V1_FILE: Final = "grpc/reflection/v1/reflection.proto"

SERVICE: Final = "ServerReflection"


def servicer(names: Sequence[str]) -> reflection.aio.ReflectionServicer:
    """A servicer that lists ``names`` and describes whatever this process has generated code for."""
    return reflection.aio.ReflectionServicer(names)


def descriptor() -> ServiceDescriptor:
    """The service whose messages the servicer takes: v1alpha."""
    found: ServiceDescriptor = reflection_pb2.DESCRIPTOR.services_by_name[SERVICE]
    return found


def describe_v1() -> str:
    """Make v1 known to reflection itself; return the service's full name."""
    pool = descriptor_pool.Default()
    try:
        found = pool.FindFileByName(_V1_FILE)
    except KeyError:
        pool.AddSerializedFile(_renamed().SerializeToString())
        found = pool.FindFileByName(_V1_FILE)
    return str(found.services_by_name[SERVICE].full_name)


def _renamed() -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto()
    reflection_pb2.DESCRIPTOR.CopyToProto(file)
    file.name, file.package = _V1_FILE, _V1
    for message in file.message_type:
        for field in message.field:
            if field.HasField("type_name"):
                field.type_name = field.type_name.replace(f".{_ALPHA}.", f".{_V1}.")
    for method in file.service[0].method:
        method.input_type = method.input_type.replace(f".{_ALPHA}.", f".{_V1}.")
        method.output_type = method.output_type.replace(f".{_ALPHA}.", f".{_V1}.")
    return file
