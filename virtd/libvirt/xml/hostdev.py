"""``<hostdev>``: a device of the host, given to the guest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Self

from virtd.libvirt.xml.build import Element, attribute, child, element

ALIAS: Final = "ua-hostdev-"
"""The beginning of the alias that carries the device's name; libvirt keeps aliases that begin with ``ua-``."""


@dataclass(frozen=True, slots=True)
class PciSource:
    """A PCI device by its address, each part in hexadecimal without ``0x``."""

    domain: str
    bus: str
    slot: str
    function: str


@dataclass(frozen=True, slots=True)
class UsbSource:
    """A USB device: by vendor and product, or by bus and device; 0 is "not said"."""

    vendor: int = 0
    product: int = 0
    bus: int = 0
    device: int = 0


@dataclass(frozen=True, slots=True)
class HostDevice:
    """A passed-through device; ``kind`` is libvirt's type, and neither source is set for kinds not known here."""

    name: str
    kind: str
    pci: PciSource | None = None
    usb: UsbSource | None = None
    mode: str = "subsystem"

    def build(self) -> Element:
        """The element.  Managed: libvirt takes the device from its driver, and gives it back."""
        managed = "yes" if self.pci is not None else None
        device = element("hostdev", mode=self.mode, type=self.kind, managed=managed)
        source = child(device, "source")
        if self.pci is not None:
            address = {key: f"0x{getattr(self.pci, key)}" for key in ("domain", "bus", "slot", "function")}
            child(source, "address", **address)
        if self.usb is not None:
            if self.usb.vendor:
                child(source, "vendor", id=f"0x{self.usb.vendor:04x}")
                child(source, "product", id=f"0x{self.usb.product:04x}")
            if self.usb.bus:
                child(source, "address", bus=self.usb.bus, device=self.usb.device)
        child(device, "alias", name=f"{ALIAS}{self.name}")
        return device

    @classmethod
    def parse(cls, device: Element) -> Self:
        """From an element; without virtd's alias, the name is empty."""
        kind = device.get("type") or ""
        alias = attribute(device, "alias", "name")
        return cls(
            name=alias.removeprefix(ALIAS) if alias.startswith(ALIAS) else "",
            kind=kind,
            pci=_pci(device.find("source/address")) if kind == "pci" else None,
            usb=_usb(device) if kind == "usb" else None,
            mode=device.get("mode") or "subsystem",
        )


def _pci(address: Element | None) -> PciSource | None:
    if address is None:
        return None
    widths = {"domain": 4, "bus": 2, "slot": 2, "function": 1}
    return PciSource(**{key: f"{_number(address.get(key)):0{width}x}" for key, width in widths.items()})


def _usb(device: Element) -> UsbSource:
    return UsbSource(
        vendor=_number(attribute(device, "source/vendor", "id")),
        product=_number(attribute(device, "source/product", "id")),
        bus=_number(attribute(device, "source/address", "bus")),
        device=_number(attribute(device, "source/address", "device")),
    )


def _number(value: str | None) -> int:
    """Decimal or ``0x`` hexadecimal, as libvirt writes them; 0 for anything else."""
    try:
        return int(value or "0", 0)
    except ValueError:
        return 0
