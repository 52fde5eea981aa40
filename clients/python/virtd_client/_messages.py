"""From ``google.protobuf.Any`` to messages, and from words to enum values, without loading all of virtd.v1."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from typing import TYPE_CHECKING, Final, Protocol, TypeVar, cast
from uuid import uuid4

from virtd_client.errors import Internal

if TYPE_CHECKING:
    from google.protobuf import any_pb2
    from google.protobuf.message import Message

    from virtd.v1 import (
        backup_pb2,
        capability_pb2,
        guest_pb2,
        guest_service_pb2,
        snapshot_pb2,
        storage_pb2,
        transfer_pb2,
    )
    from virtd_client._status import StatusMessage
    from virtd_client.types import (
        BackupKindName,
        CloneModeName,
        DiskFormatName,
        DiskPolicyName,
        MigrationModeName,
        OnConflict,
        PreallocationName,
        SnapshotLocationName,
        UpdateModeName,
    )

MessageT = TypeVar("MessageT", bound="Message")

_MODULES: Final = {
    "virtd.v1.Backup": "virtd.v1.backup_pb2",
    "virtd.v1.BackupVerification": "virtd.v1.backup_pb2",
    "virtd.v1.Guest": "virtd.v1.guest_pb2",
    "virtd.v1.Host": "virtd.v1.host_pb2",
    "virtd.v1.Image": "virtd.v1.image_pb2",
    "virtd.v1.Network": "virtd.v1.network_pb2",
    "virtd.v1.OperationMetadata": "virtd.v1.operation_pb2",
    "virtd.v1.OperationResult": "virtd.v1.operation_pb2",
    "virtd.v1.Pool": "virtd.v1.storage_pb2",
    "virtd.v1.Snapshot": "virtd.v1.snapshot_pb2",
    "virtd.v1.Volume": "virtd.v1.storage_pb2",
}
"""Where the messages that operations hold are defined."""


class RawOperation(Protocol):
    """``google.longrunning.Operation``, which comes without types."""

    name: str
    done: bool

    @property
    def metadata(self) -> any_pb2.Any: ...
    @property
    def error(self) -> StatusMessage: ...
    @property
    def response(self) -> any_pb2.Any: ...
    def HasField(self, field_name: str) -> bool:  # noqa: N802 - protobuf's name
        ...


class OperationPage(Protocol):
    """``google.longrunning.ListOperationsResponse``."""

    @property
    def operations(self) -> Iterable[RawOperation]: ...
    @property
    def next_page_token(self) -> str: ...


class OperationResponse(Protocol):
    """Response of every method that starts an operation."""

    @property
    def operation(self) -> RawOperation: ...


def unpack(packed: any_pb2.Any) -> Message:
    """The message in an Any.

    :raises Internal: a type that this client does not know, or bytes that are no such message.
    """
    from google.protobuf.message import DecodeError

    name = packed.type_url.rpartition("/")[2]
    module = _MODULES.get(name)
    if module is None:
        raise Internal(f"the daemon sent a {name or 'message without a type'}, which this client does not know")
    message_class = cast("type[Message]", getattr(import_module(module), name.rpartition(".")[2]))
    try:
        return message_class.FromString(packed.value)
    except DecodeError as error:
        raise Internal(f"the daemon sent a damaged {name}") from error


def unpack_as(packed: any_pb2.Any, message_class: type[MessageT]) -> MessageT:
    """The message in an Any that must be of one class.

    :raises Internal: it is of another.
    """
    message = unpack(packed)
    if not isinstance(message, message_class):
        raise Internal(f"the daemon sent a {message.DESCRIPTOR.full_name} instead of a {message_class.__name__}")
    return message


def new_request_id(given: str | None) -> str:
    """The caller's request id, or a new one."""
    return given or str(uuid4())


def update_mode(mode: UpdateModeName | None) -> guest_service_pb2.UpdateMode.ValueType:
    """The enum value of a mode; None is the daemon's default."""
    from virtd.v1 import guest_service_pb2

    return guest_service_pb2.UpdateMode.Value(f"UPDATE_MODE_{_word(mode or 'unspecified')}")


def conflict_policy(policy: OnConflict) -> capability_pb2.ConflictPolicy.ValueType:
    """The enum value of a policy."""
    from virtd.v1 import capability_pb2

    return capability_pb2.ConflictPolicy.Value(f"CONFLICT_POLICY_{_word(policy)}")


def backup_kind(kind: BackupKindName) -> backup_pb2.BackupKind.ValueType:
    """The enum value of a backup's kind."""
    from virtd.v1 import backup_pb2

    return backup_pb2.BackupKind.Value(f"BACKUP_KIND_{_word(kind)}")


def snapshot_location(location: SnapshotLocationName) -> snapshot_pb2.SnapshotLocation.ValueType:
    """The enum value of a snapshot's location."""
    from virtd.v1 import snapshot_pb2

    return snapshot_pb2.SnapshotLocation.Value(f"SNAPSHOT_LOCATION_{_word(location)}")


def disk_policy(name: DiskPolicyName | None) -> guest_service_pb2.DiskPolicy.ValueType:
    """The enum value; None: the daemon's default."""
    from virtd.v1 import guest_service_pb2

    return guest_service_pb2.DiskPolicy.Value(f"DISK_POLICY_{_word(name or 'unspecified')}")


def clone_mode(name: CloneModeName) -> guest_service_pb2.CloneMode.ValueType:
    """The enum value."""
    from virtd.v1 import guest_service_pb2

    return guest_service_pb2.CloneMode.Value(f"CLONE_MODE_{_word(name)}")


def migration_mode(name: MigrationModeName) -> transfer_pb2.MigrationMode.ValueType:
    """The enum value."""
    from virtd.v1 import transfer_pb2

    return transfer_pb2.MigrationMode.Value(f"MIGRATION_MODE_{_word(name)}")


def disk_format(name: DiskFormatName | None) -> guest_pb2.DiskFormat.ValueType:
    """The enum value of a format; None: the daemon's default."""
    from virtd.v1 import guest_pb2

    return guest_pb2.DiskFormat.Value(f"DISK_FORMAT_{_word(name or 'unspecified')}")


def preallocation(name: PreallocationName | None) -> storage_pb2.Preallocation.ValueType:
    """The enum value; None: the daemon's default."""
    from virtd.v1 import storage_pb2

    return storage_pb2.Preallocation.Value(f"PREALLOCATION_{_word(name or 'unspecified')}")


def guest_state(name: str) -> guest_pb2.GuestState.ValueType:
    """The enum value of a state such as ``running``."""
    from virtd.v1 import guest_pb2

    return guest_pb2.GuestState.Value(f"GUEST_STATE_{_word(name)}")


def condition_type(name: str) -> guest_pb2.ConditionType.ValueType:
    """The enum value of a condition such as ``agent-ready``."""
    from virtd.v1 import guest_pb2

    return guest_pb2.ConditionType.Value(f"CONDITION_TYPE_{_word(name)}")


def _word(name: str) -> str:
    return name.upper().replace("-", "_")
