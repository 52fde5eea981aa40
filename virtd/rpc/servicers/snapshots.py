"""virtd.v1.SnapshotService."""
# ruff: noqa: N802 - the methods have the RPCs' names

from __future__ import annotations

from virtd.model.names import check_new_id, parse_guest
from virtd.rpc.context import Context
from virtd.rpc.convert import to_message
from virtd.rpc.servicers.base import Servicer, call_of, snapshot_name
from virtd.v1 import snapshot_pb2 as pb


class SnapshotServicer(Servicer):
    """Snapshots of guests."""

    async def CreateSnapshot(self, request: pb.CreateSnapshotRequest, _context: Context) -> pb.CreateSnapshotResponse:
        """Take a snapshot."""
        operation = await self.services.snapshots.create(
            call_of(request),
            parse_guest(request.parent, "parent"),
            check_new_id(request.snapshot_id, "snapshot_id"),
            request.description,
            request.memory,
        )
        return pb.CreateSnapshotResponse(operation=await self.started(operation))

    async def GetSnapshot(self, request: pb.GetSnapshotRequest, _context: Context) -> pb.GetSnapshotResponse:
        """One snapshot."""
        snapshot = await self.services.snapshots.get(*snapshot_name(request.name))
        return pb.GetSnapshotResponse(snapshot=to_message(snapshot, pb.Snapshot))

    async def ListSnapshots(self, request: pb.ListSnapshotsRequest, _context: Context) -> pb.ListSnapshotsResponse:
        """The snapshots of a guest."""
        guest = parse_guest(request.parent, "parent")
        page = await self.services.snapshots.list(guest, request.page_size, request.page_token)
        snapshots = [to_message(snapshot, pb.Snapshot) for snapshot in page.items]
        return pb.ListSnapshotsResponse(snapshots=snapshots, next_page_token=page.next_page_token)

    async def RevertSnapshot(self, request: pb.RevertSnapshotRequest, _context: Context) -> pb.RevertSnapshotResponse:
        """Make the guest what it was."""
        operation = await self.services.snapshots.revert(call_of(request), *snapshot_name(request.name))
        return pb.RevertSnapshotResponse(operation=await self.started(operation))

    async def DeleteSnapshot(self, request: pb.DeleteSnapshotRequest, _context: Context) -> pb.DeleteSnapshotResponse:
        """Delete a snapshot."""
        operation = await self.services.snapshots.delete(call_of(request), *snapshot_name(request.name))
        return pb.DeleteSnapshotResponse(operation=await self.started(operation))
