"""In what the domains of one hypervisor differ from those of another: data, given by the backend."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from virtd.model.guest import Accelerator, DiskBus

Words = frozenset[str]


@dataclass(frozen=True, slots=True)
class Dialect:
    """What a backend's domains are made of, for reading them back and for naming what the spec cannot say.

    :param accelerators: libvirt's domain type -> the spec's accelerator.
    :param buses: the bus of a disk's target -> the spec's.
    :param os_types: libvirt's types of operating system (``hvm``) that ``spec.machine`` implies.
    :param features: children of ``<features>`` that the backend itself chooses.
    :param clock_adjustments: of ``<clock>``, that libvirt itself fills in.
    :param controllers: types that libvirt adds by itself or the backend designs -> their models; empty: any.
    :param inputs: bus -> types of ``<input>`` that are part of the machine or in the spec.
    :param balloons: models of ``<memballoon>`` that the spec means, or that are always there.
    :param boot_devices: an order of kinds of devices (``<os><boot dev='hd'/>``) is what the spec's boot orders become.
    :param device_parts: further children of a device that libvirt adds by itself, by the device's tag.
    """

    accelerators: Mapping[str, Accelerator]
    buses: Mapping[str, DiskBus]
    os_types: Words
    features: Words
    controllers: Mapping[str, Words]
    inputs: Mapping[str, Words]
    balloons: Words
    clock_adjustments: Words = frozenset()
    boot_devices: bool = False
    device_parts: Mapping[str, Words] = field(default_factory=dict)
