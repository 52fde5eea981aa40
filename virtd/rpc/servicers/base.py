"""What the servicers share."""

from __future__ import annotations

from typing import Any, Final

from google.longrunning import operations_pb2

from virtd.errors import invalid_field
from virtd.model.names import GuestName, parse, parse_guest, parse_host
from virtd.model.operation import Operation, OperationState
from virtd.rpc.context import current
from virtd.rpc.convert.operations import to_longrunning
from virtd.service import Services
from virtd.service.call import Call

POOL: Final = "hosts/{host}/pools/{pool}"
VOLUME: Final = "hosts/{host}/pools/{pool}/volumes/{volume}"
NETWORK: Final = "hosts/{host}/networks/{network}"
GUEST: Final = "hosts/{host}/guests/{guest}"
SNAPSHOT: Final = "hosts/{host}/guests/{guest}/snapshots/{snapshot}"
SCHEDULE: Final = "schedules/{schedule_id}"
IMAGE: Final = "images/{image}"
UPLOAD: Final = "uploads/{upload}"
OPERATION: Final = "operations/{operation}"


class Servicer:
    """Base of all servicers: each method converts, calls the service, converts.  No policy here."""

    def __init__(self, services: Services) -> None:
        self.services = services

    async def started(self, operation: Operation | None) -> operations_pb2.Operation | None:
        """The operation that a call began; None (``validate_only``) leaves the answer's field unset."""
        if operation is None:
            return None
        current().operation = operation.name
        return await self.longrunning(operation)

    async def longrunning(self, operation: Operation) -> operations_pb2.Operation:
        """The operation as it is now, with its response if it has succeeded."""
        succeeded = operation.state is OperationState.SUCCEEDED
        response = await self.services.operations.response(operation) if succeeded else None
        return to_longrunning(operation, response)


def call_of(request: Any) -> Call:
    """What the service is told of the present RPC."""
    return current().call(request)


def snapshot_name(name: str, field: str = "name") -> tuple[GuestName, str]:
    """Parse a snapshot's name into the guest's and the snapshot's id.

    :raises InvalidArgumentError: FIELD_INVALID.
    """
    ids = parse(name, SNAPSHOT, field)
    return GuestName(ids["host"], ids["guest"]), ids["snapshot"]


def guest_or_host(name: str, field: str) -> GuestName | str:
    """Parse ``hosts/{host}/guests/{guest}``, ``hosts/{host}`` or ``hosts/-`` (gives ``-``).

    :raises InvalidArgumentError: FIELD_INVALID.
    """
    return parse_guest(name, field) if "/guests/" in name else parse_host(name, field, wildcard=True)


def required(value: str, field: str) -> str:
    """``value`` if it is not empty.

    :raises InvalidArgumentError: FIELD_INVALID.
    """
    if not value:
        raise invalid_field(field, "is required")
    return value
