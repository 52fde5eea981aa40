"""QEMU options that libvirt has no element for: ``<qemu:commandline>`` and ``<qemu:override>``.

Used for one thing only: libvirt 9.0 as Debian builds it cannot forward ports to a ``user`` interface.
QEMU's own user network can, so the interface's device is pointed at a second ``-netdev`` that has the
forwards; the device itself stays libvirt's (address, link state, detach).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Self

from lxml import etree

from virtd.libvirt.xml.build import Element
from virtd.libvirt.xml.interface import ALIAS

NAMESPACE: Final = "http://libvirt.org/schemas/domain/qemu/1.0"
_ID: Final = "virtd-"


@dataclass(frozen=True, slots=True)
class Forward:
    """A port of the host at an IPv4 address that leads to a port of the guest."""

    protocol: str
    address: str
    host_port: int
    guest_port: int


@dataclass(frozen=True, slots=True)
class UserNet:
    """One ``-netdev user`` with forwards, for the interface of this name."""

    interface: str
    forwards: tuple[Forward, ...]

    @property
    def argument(self) -> str:
        """QEMU's option text.  Neither names nor addresses have commas: both are checked before."""
        rules = "".join(
            f",hostfwd={forward.protocol}:{forward.address}:{forward.host_port}-:{forward.guest_port}"
            for forward in self.forwards
        )
        return f"user,id={_ID}{self.interface}{rules}"

    @classmethod
    def parse(cls, argument: str) -> Self | None:
        """From QEMU's option text; None for what virtd did not write."""
        kind, *parts = argument.split(",")
        values = [part.partition("=") for part in parts]
        name = next((value for key, _, value in values if key == "id"), "")
        if kind != "user" or not name.startswith(_ID):
            return None
        forwards = [_forward(value) for key, _, value in values if key == "hostfwd"]
        return cls(name.removeprefix(_ID), tuple(forward for forward in forwards if forward is not None))


def _forward(text: str) -> Forward | None:
    host, _, guest = text.rpartition("-:")
    protocol, _, rest = host.partition(":")
    address, _, port = rest.rpartition(":")
    if not (port.isdecimal() and guest.isdecimal()):
        return None
    return Forward(protocol, address, int(port), int(guest))


def build(networks: Iterable[UserNet]) -> Iterable[Element]:
    """Both elements, or none."""
    networks = list(networks)
    if not networks:
        return ()
    line = etree.Element(f"{{{NAMESPACE}}}commandline", nsmap={"qemu": NAMESPACE})
    override = etree.Element(f"{{{NAMESPACE}}}override", nsmap={"qemu": NAMESPACE})
    for network in networks:
        etree.SubElement(line, f"{{{NAMESPACE}}}arg", value="-netdev")
        etree.SubElement(line, f"{{{NAMESPACE}}}arg", value=network.argument)
        device = etree.SubElement(override, f"{{{NAMESPACE}}}device", alias=f"{ALIAS}{network.interface}")
        front = etree.SubElement(device, f"{{{NAMESPACE}}}frontend")
        etree.SubElement(
            front, f"{{{NAMESPACE}}}property", name="netdev", type="string", value=f"{_ID}{network.interface}"
        )
    return (line, override)


def parse(domain: Element) -> tuple[UserNet, ...]:
    """The networks of a domain that virtd put there."""
    arguments = [found.get("value") or "" for found in domain.findall(f"{{{NAMESPACE}}}commandline/{{{NAMESPACE}}}arg")]
    found = [UserNet.parse(argument) for argument in arguments if argument.startswith("user,")]
    return tuple(network for network in found if network is not None)
