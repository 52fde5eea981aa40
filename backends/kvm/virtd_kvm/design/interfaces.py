"""Network interfaces and forwarded ports."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from typing import Final

from virtd.backend.api import ResolvedGuest, ResolvedInterface
from virtd.backend.notes import Notes
from virtd.libvirt.words import INTERFACE_KINDS, LINKS
from virtd.libvirt.xml.interface import Interface
from virtd.libvirt.xml.override import Forward, UserNet
from virtd.model.guest import InterfaceKind
from virtd_kvm.design.platform import Platform

MODELS: Final = ("virtio", "e1000", "e1000e", "rtl8139")
LOOPBACK: Final = "127.0.0.1"
_IPV4: Final = 4


def interfaces_of(guest: ResolvedGuest, platform: Platform, notes: Notes) -> tuple[Interface, ...]:
    """``<interface>`` for each, in the order of the spec."""
    for index, interface in enumerate(guest.interfaces):
        check_interface(interface, f"spec.interfaces[{index}]", platform, notes)
    return tuple(interface_device(interface) for interface in guest.interfaces)


def interface_device(interface: ResolvedInterface) -> Interface:
    """One ``<interface>``."""
    return Interface(
        kind=INTERFACE_KINDS[interface.kind],
        mac=interface.mac,
        source="" if interface.kind is InterfaceKind.USER else interface.network,
        model=interface.model or "virtio",
        link="" if interface.link_state is None else LINKS[interface.link_state],
        mtu=interface.mtu,
        boot_order=interface.boot_order,
        alias=interface.name if interface.port_forwards else "",
    )


def check_interface(interface: ResolvedInterface, path: str, platform: Platform, notes: Notes) -> None:
    """What a single interface cannot have."""
    if interface.model and interface.model not in MODELS:
        notes.reject(f"{path}.model", f"{interface.model!r} is not a model of this backend", *MODELS)
    if interface.kind is not InterfaceKind.USER:
        if not interface.network:
            notes.reject(f"{path}.network", f"is required for kind {interface.kind.value}")
        if interface.port_forwards:
            notes.reject(f"{path}.port_forwards", "ports are forwarded to interfaces of kind USER only", "USER")
    elif interface.mtu is not None and not platform.test:
        notes.reject(f"{path}.mtu", "libvirt cannot set the MTU of a user-mode network", "NETWORK", "BRIDGE")
    for index, forward in enumerate(interface.port_forwards):
        field = f"{path}.port_forwards[{index}].host_address"
        if forward.host_address and not _is_ipv4(forward.host_address):
            notes.reject(field, "QEMU's user-mode network listens on IPv4 addresses only", LOOPBACK, "0.0.0.0")  # noqa: S104 - a choice that is named, not made


def user_nets_of(guest: ResolvedGuest, notes: Notes) -> Iterator[UserNet]:
    """The forwards of each interface that has some."""
    for index, interface in enumerate(guest.interfaces):
        if interface.port_forwards and interface.kind is InterfaceKind.USER:
            notes.emulate(
                f"spec.interfaces[{index}].port_forwards",
                "by QEMU's own user-mode network, past libvirt: the host's other tools do not show them",
            )
            yield UserNet(
                interface.name,
                tuple(
                    Forward(
                        forward.protocol.value.lower(),
                        forward.host_address or LOOPBACK,
                        forward.host_port,
                        forward.guest_port,
                    )
                    for forward in interface.port_forwards
                ),
            )


def _is_ipv4(text: str) -> bool:
    try:
        return ipaddress.ip_address(text).version == _IPV4
    except ValueError:
        return False
