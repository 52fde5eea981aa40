"""virtd.v1.SnapshotService."""
# ruff: noqa: N802 - the methods have the RPCs' names

from __future__ import annotations

from virtd.errors import invalid_field
from virtd.model.names import WILDCARD, check_new_id, parse, parse_guest, shown
from virtd.model.snapshot import Snapshot, SnapshotLocation
from virtd.rpc.context import Context
from virtd.rpc.convert import enum_member, to_message
from virtd.rpc.servicers.base import GUEST, Servicer, call_of, snapshot_name
from virtd.service.snapshots import Draft
from virtd.v1 import capability_pb2
from virtd.v1 import snapshot_pb2 as pb


class SnapshotServicer(Servicer):
    """Snapshots of guests."""

    async def CreateSnapshot(self, request: pb.CreateSnapshotRequest, _context: Context) -> pb.CreateSnapshotResponse:
        """Take a snapshot, or plan it."""
        draft = Draft(
            check_new_id(request.snapshot_id, "snapshot_id"),
            request.description,
            request.memory,
            enum_member(request, "location", SnapshotLocation) or SnapshotLocation.AUTO,
            request.quiesce,
        )
        made = await self.services.snapshots.create(call_of(request), parse_guest(request.parent, "parent"), draft)
        if isinstance(made, Snapshot):
            return pb.CreateSnapshotResponse(plan=to_message(made, pb.Snapshot))
        return pb.CreateSnapshotResponse(operation=await self.started(made))

    async def GetSnapshot(self, request: pb.GetSnapshotRequest, _context: Context) -> pb.GetSnapshotResponse:
        """One snapshot."""
        snapshot = await self.services.snapshots.get(*snapshot_name(request.name))
        return pb.GetSnapshotResponse(snapshot=to_message(snapshot, pb.Snapshot))

    async def ListSnapshots(self, request: pb.ListSnapshotsRequest, _context: Context) -> pb.ListSnapshotsResponse:
        """The snapshots of a guest, of a host's guests, or of all."""
        ids = parse(request.parent, GUEST, "parent", wildcard=True)
        if ids["host"] == WILDCARD != ids["guest"]:
            raise invalid_field("parent", "hosts/- goes with guests/- only", "hosts/-/guests/-")
        page = await self.services.snapshots.list(ids["host"], ids["guest"], request.page_size, request.page_token)
        return pb.ListSnapshotsResponse(
            snapshots=[to_message(snapshot, pb.Snapshot) for snapshot in page.items],
            next_page_token=page.next_page_token,
            errors=[to_message(error, capability_pb2.ErrorRecord) for error in page.errors],
        )

    async def UpdateSnapshot(self, request: pb.UpdateSnapshotRequest, _context: Context) -> pb.UpdateSnapshotResponse:
        """Change the description."""
        guest, snapshot = snapshot_name(request.snapshot.name, "snapshot.name")
        for index, field in enumerate(request.update_fields):
            if field != "description":
                raise invalid_field(f"update_fields[{index}]", f"{shown(field)} cannot be changed", "description")
        operation = await self.services.snapshots.update(
            call_of(request), guest, snapshot, request.snapshot.description
        )
        return pb.UpdateSnapshotResponse(operation=await self.started(operation))

    async def RevertSnapshot(self, request: pb.RevertSnapshotRequest, _context: Context) -> pb.RevertSnapshotResponse:
        """Make the guest what it was."""
        operation = await self.services.snapshots.revert(call_of(request), *snapshot_name(request.name))
        return pb.RevertSnapshotResponse(operation=await self.started(operation))

    async def DeleteSnapshot(self, request: pb.DeleteSnapshotRequest, _context: Context) -> pb.DeleteSnapshotResponse:
        """Delete a snapshot."""
        operation = await self.services.snapshots.delete(
            call_of(request), *snapshot_name(request.name), children=request.children
        )
        return pb.DeleteSnapshotResponse(operation=await self.started(operation))
