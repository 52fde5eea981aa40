"""Short forms of an update: one device of a guest at a time."""

from __future__ import annotations

from dataclasses import replace

from virtd.errors import invalid_field
from virtd.model.changes import entry_of
from virtd.model.devices import LinkState
from virtd.model.guest import DiskDevice, DiskSpec, GuestSpec, InterfaceSpec
from virtd.model.names import GuestName
from virtd.service.changes import Presence
from virtd.service.core import Core
from virtd.service.verbs.update import UpdateRequest


class Devices:
    """From what a caller wants of one device to the update that does it.  No side effect.

    Each method raises GUEST_NOT_FOUND, and FIELD_INVALID for a device that is there already or is not.
    """

    def __init__(self, core: Core) -> None:
        self._core = core

    def attach_disk(self, name: GuestName, disk: DiskSpec) -> UpdateRequest:
        """Add a disk."""
        self._check_free(name, "disks", disk.name, "disk.name")
        return _update(f"spec.disks[{disk.name}]", disks=(disk,))

    def detach_disk(self, name: GuestName, disk: str) -> UpdateRequest:
        """Remove a disk."""
        self._disk(name, disk)
        return _update(f"spec.disks[{disk}]")

    def resize_disk(self, name: GuestName, disk: str, capacity_bytes: int) -> UpdateRequest:
        """Make a disk larger."""
        held = self._disk(name, disk)
        if held.blank is not None:
            arm, wanted = "blank", replace(held, blank=replace(held.blank, capacity_bytes=capacity_bytes))
        elif held.image is not None:
            arm, wanted = "image", replace(held, image=replace(held.image, capacity_bytes=capacity_bytes))
        else:
            raise invalid_field("disk", f"{disk} is not a disk that virtd made for this guest: resize its volume")
        return _update(f"spec.disks[{disk}].{arm}.capacity_bytes", disks=(wanted,))

    def attach_interface(self, name: GuestName, interface: InterfaceSpec) -> UpdateRequest:
        """Add an interface."""
        self._check_free(name, "interfaces", interface.name, "interface.name")
        return _update(f"spec.interfaces[{interface.name}]", interfaces=(interface,))

    def detach_interface(self, name: GuestName, interface: str) -> UpdateRequest:
        """Remove an interface."""
        self._named(name, "interfaces", interface, "interface")
        return _update(f"spec.interfaces[{interface}]")

    def set_link(self, name: GuestName, interface: str, state: LinkState) -> UpdateRequest:
        """Plug a cable in or out."""
        self._named(name, "interfaces", interface, "interface")
        wanted = InterfaceSpec(interface, link_state=state)
        return _update(f"spec.interfaces[{interface}].link_state", interfaces=(wanted,))

    def insert_medium(self, name: GuestName, disk: str, medium: DiskSpec) -> UpdateRequest:
        """Put a medium into a drive."""
        self._drive(name, disk)
        if medium.blank is not None or not (medium.image or medium.volume or medium.host_file):
            raise invalid_field("medium.source", "must be one of image, volume, host_file")
        wanted = DiskSpec(disk, image=medium.image, volume=medium.volume, host_file=medium.host_file)
        return _update(f"spec.disks[{disk}].source", disks=(wanted,))

    def eject_medium(self, name: GuestName, disk: str) -> UpdateRequest:
        """Empty a drive."""
        self._drive(name, disk)
        return _update(f"spec.disks[{disk}].source", disks=(DiskSpec(disk),))

    # -------------------------------------------------------------------------------------- inside

    def _disk(self, name: GuestName, disk: str) -> DiskSpec:
        self._named(name, "disks", disk, "disk")
        found: DiskSpec = entry_of(self._core.view(name).guest.spec, "disks", disk)
        return found

    def _drive(self, name: GuestName, disk: str) -> None:
        if self._disk(name, disk).device is not DiskDevice.CDROM:
            drives = [
                entry.name for entry in self._core.view(name).guest.spec.disks if entry.device is DiskDevice.CDROM
            ]
            raise invalid_field("disk", f"{disk} is not a CD-ROM drive", *drives)

    def _named(self, name: GuestName, list_name: str, entry: str, where: str) -> None:
        spec = self._core.view(name).guest.spec
        if entry_of(spec, list_name, entry) is None:
            known = [other.name for other in getattr(spec, list_name)]
            raise invalid_field(where, f"the guest has no {where} of the name {entry[:80]!r}", *known)

    def _check_free(self, name: GuestName, list_name: str, entry: str, where: str) -> None:
        if not entry:
            raise invalid_field(where, "is required")
        if entry_of(self._core.view(name).guest.spec, list_name, entry) is not None:
            raise invalid_field(where, f"{entry[:80]!r} is taken: change it with UpdateGuest, or choose another name")


def _update(
    path: str, *, disks: tuple[DiskSpec, ...] = (), interfaces: tuple[InterfaceSpec, ...] = ()
) -> UpdateRequest:
    spec = GuestSpec(disks=disks, interfaces=interfaces)
    return UpdateRequest(spec, Presence.of(spec), (path,))
