# Generated from _async/devices.py by `python -m tests.tools.gen_sync_client`; never edited by hand.
"""Devices of guests, one at a time."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from virtd_client import _messages
from virtd_client._sync.operation import Operation
from virtd_client._sync.service import Service
from virtd_client.types import OnConflict, UpdateModeName

if TYPE_CHECKING:
    from virtd.v1.device_pb2_grpc import DeviceServiceStub
    from virtd.v1.guest_pb2 import DiskSpec, Guest, InterfaceSpec

_GUEST = "virtd.v1.Guest"


class Devices(Service):
    """Disks, interfaces and media: short forms of :meth:`Guests.change`.

    Each changes the guest's spec and, where that is possible and ``mode`` does not say otherwise, the
    running guest.  With ``validate_only`` the operation has no name, but a ``plan``.
    """

    @cached_property
    def _stub(self) -> DeviceServiceStub:
        from virtd.v1.device_pb2_grpc import DeviceServiceStub

        return DeviceServiceStub(self._transport.channel)

    def attach_disk(
        self,
        name: str,
        disk: DiskSpec,
        *,
        mode: UpdateModeName | None = None,
        etag: str = "",
        on_conflict: OnConflict = "queue",
        request_id: str | None = None,
        validate_only: bool = False,
    ) -> Operation[Guest]:
        """Add a disk."""
        from virtd.v1 import device_pb2 as pb

        request = pb.AttachDiskRequest(
            name=name,
            disk=disk,
            mode=_messages.update_mode(mode),
            etag=etag,
            on_conflict=_messages.conflict_policy(on_conflict),
            request_id=_messages.new_request_id(request_id),
            validate_only=validate_only,
        )
        return self._start(
            self._stub.AttachDisk,
            request,
            _GUEST,
            plan=(lambda response: response.plan) if validate_only else None,
        )

    def detach_disk(
        self,
        name: str,
        disk: str,
        *,
        delete_volume: bool = False,
        mode: UpdateModeName | None = None,
        etag: str = "",
        on_conflict: OnConflict = "queue",
        request_id: str | None = None,
        validate_only: bool = False,
    ) -> Operation[Guest]:
        """Remove a disk.  Its data stays unless ``delete_volume``, and then only if virtd created it."""
        from virtd.v1 import device_pb2 as pb

        request = pb.DetachDiskRequest(
            name=name,
            disk=disk,
            delete_volume=delete_volume,
            mode=_messages.update_mode(mode),
            etag=etag,
            on_conflict=_messages.conflict_policy(on_conflict),
            request_id=_messages.new_request_id(request_id),
            validate_only=validate_only,
        )
        return self._start(
            self._stub.DetachDisk,
            request,
            _GUEST,
            plan=(lambda response: response.plan) if validate_only else None,
        )

    def resize_disk(
        self,
        name: str,
        disk: str,
        capacity_bytes: int,
        *,
        mode: UpdateModeName | None = None,
        etag: str = "",
        on_conflict: OnConflict = "queue",
        request_id: str | None = None,
        validate_only: bool = False,
    ) -> Operation[Guest]:
        """Make a disk larger; the guest sees it at once."""
        from virtd.v1 import device_pb2 as pb

        request = pb.ResizeDiskRequest(
            name=name,
            disk=disk,
            capacity_bytes=capacity_bytes,
            mode=_messages.update_mode(mode),
            etag=etag,
            on_conflict=_messages.conflict_policy(on_conflict),
            request_id=_messages.new_request_id(request_id),
            validate_only=validate_only,
        )
        return self._start(
            self._stub.ResizeDisk,
            request,
            _GUEST,
            plan=(lambda response: response.plan) if validate_only else None,
        )

    def attach_interface(
        self,
        name: str,
        interface: InterfaceSpec,
        *,
        mode: UpdateModeName | None = None,
        etag: str = "",
        on_conflict: OnConflict = "queue",
        request_id: str | None = None,
        validate_only: bool = False,
    ) -> Operation[Guest]:
        """Add an interface."""
        from virtd.v1 import device_pb2 as pb

        request = pb.AttachInterfaceRequest(
            name=name,
            interface=interface,
            mode=_messages.update_mode(mode),
            etag=etag,
            on_conflict=_messages.conflict_policy(on_conflict),
            request_id=_messages.new_request_id(request_id),
            validate_only=validate_only,
        )
        return self._start(
            self._stub.AttachInterface,
            request,
            _GUEST,
            plan=(lambda response: response.plan) if validate_only else None,
        )

    def detach_interface(
        self,
        name: str,
        interface: str,
        *,
        mode: UpdateModeName | None = None,
        etag: str = "",
        on_conflict: OnConflict = "queue",
        request_id: str | None = None,
        validate_only: bool = False,
    ) -> Operation[Guest]:
        """Remove an interface."""
        from virtd.v1 import device_pb2 as pb

        request = pb.DetachInterfaceRequest(
            name=name,
            interface=interface,
            mode=_messages.update_mode(mode),
            etag=etag,
            on_conflict=_messages.conflict_policy(on_conflict),
            request_id=_messages.new_request_id(request_id),
            validate_only=validate_only,
        )
        return self._start(
            self._stub.DetachInterface,
            request,
            _GUEST,
            plan=(lambda response: response.plan) if validate_only else None,
        )

    def set_link(
        self,
        name: str,
        interface: str,
        *,
        up: bool,
        mode: UpdateModeName | None = None,
        etag: str = "",
        on_conflict: OnConflict = "queue",
        request_id: str | None = None,
        validate_only: bool = False,
    ) -> Operation[Guest]:
        """Plug an interface's cable in or out."""
        from virtd.v1 import device_pb2 as pb
        from virtd.v1 import guest_pb2

        request = pb.SetLinkRequest(
            name=name,
            interface=interface,
            link_state=guest_pb2.LINK_STATE_UP if up else guest_pb2.LINK_STATE_DOWN,
            mode=_messages.update_mode(mode),
            etag=etag,
            on_conflict=_messages.conflict_policy(on_conflict),
            request_id=_messages.new_request_id(request_id),
            validate_only=validate_only,
        )
        return self._start(
            self._stub.SetLink,
            request,
            _GUEST,
            plan=(lambda response: response.plan) if validate_only else None,
        )

    def insert_medium(
        self,
        name: str,
        disk: str,
        medium: DiskSpec,
        *,
        force: bool = False,
        mode: UpdateModeName | None = None,
        etag: str = "",
        on_conflict: OnConflict = "queue",
        request_id: str | None = None,
        validate_only: bool = False,
    ) -> Operation[Guest]:
        """Put the source of ``medium`` (image, volume or host file) into the CD-ROM drive ``disk``."""
        from virtd.v1 import device_pb2 as pb

        request = pb.InsertMediumRequest(
            name=name,
            disk=disk,
            medium=medium,
            force=force,
            mode=_messages.update_mode(mode),
            etag=etag,
            on_conflict=_messages.conflict_policy(on_conflict),
            request_id=_messages.new_request_id(request_id),
            validate_only=validate_only,
        )
        return self._start(
            self._stub.InsertMedium,
            request,
            _GUEST,
            plan=(lambda response: response.plan) if validate_only else None,
        )

    def eject_medium(
        self,
        name: str,
        disk: str,
        *,
        force: bool = False,
        mode: UpdateModeName | None = None,
        etag: str = "",
        on_conflict: OnConflict = "queue",
        request_id: str | None = None,
        validate_only: bool = False,
    ) -> Operation[Guest]:
        """Empty a CD-ROM drive; with ``force`` also one that the guest has locked."""
        from virtd.v1 import device_pb2 as pb

        request = pb.EjectMediumRequest(
            name=name,
            disk=disk,
            force=force,
            mode=_messages.update_mode(mode),
            etag=etag,
            on_conflict=_messages.conflict_policy(on_conflict),
            request_id=_messages.new_request_id(request_id),
            validate_only=validate_only,
        )
        return self._start(
            self._stub.EjectMedium,
            request,
            _GUEST,
            plan=(lambda response: response.plan) if validate_only else None,
        )
