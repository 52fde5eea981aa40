"""Room for devices that are plugged in while the guest runs.

On a machine whose root bus is PCI Express nothing can be plugged into that bus itself: each device
needs a root port of its own, and ports cannot be added to a running guest.  libvirt makes as many as
the guest has devices at its start, and not one more.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from virtd.backend.api import ResolvedGuest
from virtd.libvirt.xml.controller import Controller
from virtd.model.guest import DiskBus
from virtd_kvm.design.machine import has_pcie

SPARE: Final = 6
"""Ports that are free when the guest starts."""
_ALWAYS: Final = 5  # balloon, random numbers, agent's serial bus, USB, SCSI


def root_ports_of(guest: ResolvedGuest, machine: str) -> Iterator[Controller]:
    """The ports by number: one for each device that may need one, and the spare ones."""
    if not has_pcie(machine):
        return
    virtio = sum(disk.bus is DiskBus.VIRTIO for disk in guest.disks)
    passed = sum(device.pci is not None for device in guest.host_devices)
    needed = _ALWAYS + virtio + len(guest.interfaces) + len(guest.filesystems) + passed
    for index in range(1, needed + SPARE + 1):
        yield Controller("pci", index, "pcie-root-port")
