"""What the servicers that change guests' specs share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from google.protobuf.message import Message

from virtd.model.changes import ROOT, touches
from virtd.model.guest import GuestSpec
from virtd.model.names import GuestName
from virtd.rpc.convert import enum_member, from_message, to_message
from virtd.rpc.servicers.base import Servicer
from virtd.service.call import Call
from virtd.service.changes import KEYS, Presence
from virtd.service.verbs.update import UpdateMode, UpdateRequest
from virtd.v1 import guest_service_pb2 as pb


class UpdatingServicer(Servicer):
    """Has responses with an operation or, for ``validate_only``, a plan."""

    async def changed(self, call: Call, name: GuestName, asked: UpdateRequest, response: Any) -> None:
        """Begin the update, or plan it, and say so in the response."""
        if call.validate_only:
            plan = await self.services.updates.plan(call, name, asked)
            response.plan.CopyFrom(to_message(plan, pb.UpdatePlan))
            return
        operation = await self.started(await self.services.updates.update(call, name, asked))
        if operation is not None:
            response.operation.CopyFrom(operation)


def spec_paths(paths: Sequence[str]) -> tuple[str, ...]:
    """Those of the paths that are the spec's."""
    return tuple(path for path in paths if touches(path, ROOT))


def update_of(request: Any, paths: Sequence[str]) -> UpdateRequest:
    """What a request with a ``guest``, and perhaps a ``mode``, wants of these paths."""
    guest = request.guest
    return UpdateRequest(
        spec=from_message(guest.spec, GuestSpec, "guest.spec"),
        present=presence_of(guest.spec),
        paths=spec_paths(paths),
        display_name=guest.display_name if "display_name" in paths else None,
        labels=dict(guest.labels) if "labels" in paths else None,
        annotations=dict(guest.annotations) if "annotations" in paths else None,
        mode=enum_member(request, "mode", UpdateMode) or UpdateMode.LIVE_OR_NEXT_BOOT,
    )


def presence_of(message: Message) -> Presence:
    """Which fields a message sets: those with presence that were set, and those that are not at zero."""
    parts: dict[str, Presence] = {}
    for field, value in message.ListFields():
        if field.message_type is None or field.message_type.GetOptions().map_entry:
            parts[field.name] = Presence()
        elif field.is_repeated:
            key = KEYS.get(field.name)
            parts[field.name] = Presence(
                {getattr(item, key): presence_of(item) for item in value} if key is not None else {}
            )
        else:
            parts[field.name] = presence_of(value)
    return Presence(parts)
