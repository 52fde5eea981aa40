"""Single devices as XML elements, for attaching to a guest that exists and for detaching from it.

They are the same elements that a definition gets, so a device that is attached live and one that was
there from the start cannot differ.
"""

from __future__ import annotations

from virtd.backend.api import ResolvedDisk, ResolvedInterface
from virtd.libvirt.xml.build import Element
from virtd.model.devices import FilesystemSpec, HostDeviceSpec
from virtd_kvm.design.devices import filesystem_device, host_device
from virtd_kvm.design.disks import disk_device, next_target
from virtd_kvm.design.interfaces import interface_device

__all__ = ["disk_element", "filesystem_element", "hostdev_element", "interface_element", "next_target"]


def disk_element(disk: ResolvedDisk, target: str) -> Element:
    """``<disk>`` with this target (see :func:`next_target`)."""
    return disk_device(disk, target, boot_order=disk.boot_order).build()


def interface_element(interface: ResolvedInterface) -> Element:
    """``<interface>``.  Port forwards are not in it: they need a start of the guest."""
    return interface_device(interface).build()


def filesystem_element(filesystem: FilesystemSpec) -> Element:
    """``<filesystem>``."""
    return filesystem_device(filesystem).build()


def hostdev_element(device: HostDeviceSpec) -> Element:
    """``<hostdev>``."""
    return host_device(device).build()
