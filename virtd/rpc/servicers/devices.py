"""virtd.v1.DeviceService: short forms of UpdateGuest."""
# ruff: noqa: N802 - the methods have the RPCs' names

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeVar

from virtd.errors import invalid_field
from virtd.model.devices import LinkState
from virtd.model.guest import DiskSpec, InterfaceSpec
from virtd.model.names import parse_guest
from virtd.rpc.context import Context
from virtd.rpc.convert import enum_member, from_message
from virtd.rpc.servicers.base import call_of, required
from virtd.rpc.servicers.updating import UpdatingServicer
from virtd.service.verbs.update import UpdateMode, UpdateRequest
from virtd.v1 import device_pb2 as pb

R = TypeVar("R")


class DeviceServicer(UpdatingServicer):
    """Each method says what is to be changed; the rest is UpdateGuest's."""

    async def AttachDisk(self, request: pb.AttachDiskRequest, _context: Context) -> pb.AttachDiskResponse:
        """Add a disk."""
        if not request.HasField("disk"):
            raise invalid_field("disk", "is required")
        disk = from_message(request.disk, DiskSpec, "disk")
        asked = self.services.devices.attach_disk(parse_guest(request.name), disk)
        return await self._answer(request, asked, pb.AttachDiskResponse())

    async def DetachDisk(self, request: pb.DetachDiskRequest, _context: Context) -> pb.DetachDiskResponse:
        """Remove a disk."""
        asked = self.services.devices.detach_disk(parse_guest(request.name), required(request.disk, "disk"))
        asked = replace(asked, delete_removed_disks=request.delete_volume)
        return await self._answer(request, asked, pb.DetachDiskResponse())

    async def ResizeDisk(self, request: pb.ResizeDiskRequest, _context: Context) -> pb.ResizeDiskResponse:
        """Make a disk larger."""
        name, disk = parse_guest(request.name), required(request.disk, "disk")
        asked = self.services.devices.resize_disk(name, disk, request.capacity_bytes)
        return await self._answer(request, asked, pb.ResizeDiskResponse())

    async def AttachInterface(
        self, request: pb.AttachInterfaceRequest, _context: Context
    ) -> pb.AttachInterfaceResponse:
        """Add an interface."""
        if not request.HasField("interface"):
            raise invalid_field("interface", "is required")
        interface = from_message(request.interface, InterfaceSpec, "interface")
        asked = self.services.devices.attach_interface(parse_guest(request.name), interface)
        return await self._answer(request, asked, pb.AttachInterfaceResponse())

    async def DetachInterface(
        self, request: pb.DetachInterfaceRequest, _context: Context
    ) -> pb.DetachInterfaceResponse:
        """Remove an interface."""
        name, interface = parse_guest(request.name), required(request.interface, "interface")
        asked = self.services.devices.detach_interface(name, interface)
        return await self._answer(request, asked, pb.DetachInterfaceResponse())

    async def SetLink(self, request: pb.SetLinkRequest, _context: Context) -> pb.SetLinkResponse:
        """Plug a cable in or out."""
        name, interface = parse_guest(request.name), required(request.interface, "interface")
        state = enum_member(request, "link_state", LinkState)
        if state is None:
            raise invalid_field("link_state", "is required", *LinkState)
        asked = self.services.devices.set_link(name, interface, state)
        return await self._answer(request, asked, pb.SetLinkResponse())

    async def InsertMedium(self, request: pb.InsertMediumRequest, _context: Context) -> pb.InsertMediumResponse:
        """Put a medium into a drive."""
        if not request.HasField("medium"):
            raise invalid_field("medium", "is required")
        name, disk = parse_guest(request.name), required(request.disk, "disk")
        asked = self.services.devices.insert_medium(name, disk, from_message(request.medium, DiskSpec, "medium"))
        return await self._answer(request, replace(asked, force_eject=request.force), pb.InsertMediumResponse())

    async def EjectMedium(self, request: pb.EjectMediumRequest, _context: Context) -> pb.EjectMediumResponse:
        """Empty a drive."""
        asked = self.services.devices.eject_medium(parse_guest(request.name), required(request.disk, "disk"))
        return await self._answer(request, replace(asked, force_eject=request.force), pb.EjectMediumResponse())

    async def _answer(self, request: Any, asked: UpdateRequest, response: R) -> R:
        mode = enum_member(request, "mode", UpdateMode) or UpdateMode.LIVE_OR_NEXT_BOOT
        asked = replace(asked, mode=mode, etag=request.etag)
        await self.changed(call_of(request), parse_guest(request.name), asked, response)
        return response
