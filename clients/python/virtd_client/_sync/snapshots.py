# Generated from _async/snapshots.py by `python -m tests.tools.gen_sync_client`; never edited by hand.
"""Snapshots of guests."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from virtd_client import _messages
from virtd_client._sync.operation import Operation
from virtd_client._sync.service import Service, pages
from virtd_client.types import OnConflict, SnapshotList, SnapshotLocationName

if TYPE_CHECKING:
    from virtd.v1.capability_pb2 import ErrorRecord
    from virtd.v1.guest_pb2 import Guest
    from virtd.v1.operation_pb2 import OperationResult
    from virtd.v1.snapshot_pb2 import Snapshot
    from virtd.v1.snapshot_pb2_grpc import SnapshotServiceStub

_RESULT = "virtd.v1.OperationResult"


class Snapshots(Service):
    """Snapshots of guests.  Names are ``hosts/{host}/guests/{guest}/snapshots/{snapshot}``."""

    @cached_property
    def _stub(self) -> SnapshotServiceStub:
        from virtd.v1.snapshot_pb2_grpc import SnapshotServiceStub

        return SnapshotServiceStub(self._transport.channel)

    def create(
        self,
        parent: str,
        snapshot_id: str,
        *,
        description: str = "",
        memory: bool = False,
        location: SnapshotLocationName = "auto",
        quiesce: bool = False,
        on_conflict: OnConflict = "queue",
        request_id: str | None = None,
        validate_only: bool = False,
    ) -> Operation[Snapshot]:
        """Take a snapshot.

        :param parent: the guest's name.
        :param memory: include the memory of the running guest.
        :param location: ``"internal"`` or ``"external"``; ``"auto"``: the host chooses, and says why.
        :param quiesce: have the guest's agent freeze its file systems for a snapshot of running disks.
        """
        from virtd.v1 import snapshot_pb2 as pb

        request = pb.CreateSnapshotRequest(
            parent=parent,
            snapshot_id=snapshot_id,
            description=description,
            memory=memory,
            location=_messages.snapshot_location(location),
            quiesce=quiesce,
            on_conflict=_messages.conflict_policy(on_conflict),
            request_id=_messages.new_request_id(request_id),
            validate_only=validate_only,
        )
        return self._start(self._stub.CreateSnapshot, request, "virtd.v1.Snapshot")

    def plan(
        self,
        parent: str,
        snapshot_id: str,
        *,
        memory: bool = False,
        location: SnapshotLocationName = "auto",
        quiesce: bool = False,
    ) -> Snapshot:
        """What :meth:`create` would take now, and where it would be kept and why; takes nothing.

        :raises VirtdError: what :meth:`create` would be refused with.
        """
        from virtd.v1 import snapshot_pb2 as pb

        request = pb.CreateSnapshotRequest(
            parent=parent,
            snapshot_id=snapshot_id,
            memory=memory,
            location=_messages.snapshot_location(location),
            quiesce=quiesce,
            validate_only=True,
        )
        return (self._transport.unary(self._stub.CreateSnapshot, request)).plan

    def update(
        self,
        name: str,
        *,
        description: str,
        on_conflict: OnConflict = "queue",
        request_id: str | None = None,
        validate_only: bool = False,
    ) -> Operation[Snapshot]:
        """Change a snapshot's description."""
        from virtd.v1 import snapshot_pb2 as pb

        request = pb.UpdateSnapshotRequest(
            snapshot=pb.Snapshot(name=name, description=description),
            update_fields=["description"],
            on_conflict=_messages.conflict_policy(on_conflict),
            request_id=_messages.new_request_id(request_id),
            validate_only=validate_only,
        )
        return self._start(self._stub.UpdateSnapshot, request, "virtd.v1.Snapshot")

    def get(self, name: str) -> Snapshot:
        """One snapshot."""
        from virtd.v1 import snapshot_pb2 as pb

        return (self._transport.unary(self._stub.GetSnapshot, pb.GetSnapshotRequest(name=name))).snapshot

    def list(self, parent: str, *, page_size: int = 0) -> SnapshotList:
        """All snapshots of a guest, or with ``-`` of several; parents before children.

        :param parent: a guest's name, ``hosts/{host}/guests/-`` or ``hosts/-/guests/-``.
        """
        from virtd.v1 import snapshot_pb2 as pb

        snapshots: tuple[Snapshot, ...] = ()
        failed: dict[str, ErrorRecord] = {}
        for page in pages(
            lambda token: self._transport.unary(
                self._stub.ListSnapshots,
                pb.ListSnapshotsRequest(parent=parent, page_size=page_size, page_token=token),
            )
        ):
            snapshots += tuple(page.snapshots)
            failed.update({error.resource: error for error in page.errors})
        return SnapshotList(snapshots, tuple(failed.values()))

    def revert(
        self,
        name: str,
        *,
        on_conflict: OnConflict = "queue",
        request_id: str | None = None,
        validate_only: bool = False,
    ) -> Operation[Guest]:
        """Make the guest what it was then.  What it is now is lost unless it was snapshotted."""
        from virtd.v1 import snapshot_pb2 as pb

        request = pb.RevertSnapshotRequest(
            name=name,
            on_conflict=_messages.conflict_policy(on_conflict),
            request_id=_messages.new_request_id(request_id),
            validate_only=validate_only,
        )
        return self._start(self._stub.RevertSnapshot, request, "virtd.v1.Guest")

    def delete(
        self,
        name: str,
        *,
        children: bool = False,
        on_conflict: OnConflict = "queue",
        request_id: str | None = None,
        validate_only: bool = False,
    ) -> Operation[OperationResult]:
        """Delete a snapshot; its children keep their data."""
        from virtd.v1 import snapshot_pb2 as pb

        request = pb.DeleteSnapshotRequest(
            name=name,
            children=children,
            on_conflict=_messages.conflict_policy(on_conflict),
            request_id=_messages.new_request_id(request_id),
            validate_only=validate_only,
        )
        return self._start(self._stub.DeleteSnapshot, request, _RESULT)
