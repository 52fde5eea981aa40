"""Operations as ``google.longrunning.Operation``."""

from __future__ import annotations

from typing import Final

from google.longrunning import operations_pb2
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message

from virtd.errors import INTERNAL_ERROR, OPERATION_CANCELLED, ErrorRecord
from virtd.model.backup import Backup, BackupVerification
from virtd.model.guest import Guest
from virtd.model.network import Network
from virtd.model.operation import Operation, OperationState
from virtd.model.snapshot import Snapshot
from virtd.model.storage import Image, Pool, Volume
from virtd.rpc.convert.generic import to_message
from virtd.rpc.status import to_status
from virtd.v1 import backup_pb2, guest_pb2, image_pb2, network_pb2, operation_pb2, snapshot_pb2, storage_pb2

Response = Guest | Snapshot | Pool | Volume | Image | Network | Backup | BackupVerification

_MESSAGES: Final[dict[type, type[Message]]] = {
    Guest: guest_pb2.Guest,
    Snapshot: snapshot_pb2.Snapshot,
    Pool: storage_pb2.Pool,
    Volume: storage_pb2.Volume,
    Image: image_pb2.Image,
    Backup: backup_pb2.Backup,
    BackupVerification: backup_pb2.BackupVerification,
    Network: network_pb2.Network,
}


def to_longrunning(operation: Operation, response: Response | None) -> operations_pb2.Operation:
    """The operation as it is now.

    :param response: the resource that a successful operation made or changed; None gives an
        ``OperationResult``.  Not looked at unless the operation has succeeded.
    """
    message = operations_pb2.Operation(name=operation.name, done=operation.state.terminal)
    message.metadata.CopyFrom(_pack(to_message(operation, operation_pb2.OperationMetadata)))
    if operation.state is OperationState.SUCCEEDED:
        message.response.CopyFrom(_pack(_response(operation, response)))
    elif operation.state.terminal:
        message.error.CopyFrom(to_status(_error(operation)))
    return message


def _response(operation: Operation, response: Response | None) -> Message:
    if response is not None:
        return to_message(response, _MESSAGES[type(response)])
    return operation_pb2.OperationResult(target=operation.target, data=dict(operation.result_data))


def _error(operation: Operation) -> ErrorRecord:
    if operation.error is not None:
        return operation.error
    if operation.state is OperationState.CANCELLED:
        return ErrorRecord(OPERATION_CANCELLED.kind, OPERATION_CANCELLED.name, "The operation was cancelled.")
    return ErrorRecord(INTERNAL_ERROR.kind, INTERNAL_ERROR.name, "The operation failed without a recorded error.")


def _pack(message: Message) -> AnyMessage:
    packed = AnyMessage()
    packed.Pack(message)
    return packed
