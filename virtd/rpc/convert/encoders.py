"""The encoders that the daemon gives to the inventory, which knows no protobuf.

They are called once for each change of a record; the bytes are kept beside the record and shared
by lists, answers and watchers.  Equal records give equal bytes.  Safe from any thread.
"""

from __future__ import annotations

from typing import Final

from virtd.inventory import Encoders
from virtd.model.guest import Guest
from virtd.model.host import Host
from virtd.model.operation import Operation
from virtd.rpc.convert.generic import to_message
from virtd.v1 import guest_pb2, host_pb2, operation_pb2


def encode_guest(guest: Guest) -> bytes:
    """``virtd.v1.Guest``."""
    return to_message(guest, guest_pb2.Guest).SerializeToString(deterministic=True)


def encode_operation(operation: Operation) -> bytes:
    """``virtd.v1.OperationMetadata``."""
    return to_message(operation, operation_pb2.OperationMetadata).SerializeToString(deterministic=True)


def encode_host(host: Host) -> bytes:
    """``virtd.v1.Host``."""
    return to_message(host, host_pb2.Host).SerializeToString(deterministic=True)


ENCODERS: Final = Encoders(guest=encode_guest, operation=encode_operation, host=encode_host)
"""All three, as the inventory takes them."""
