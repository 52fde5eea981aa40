"""What a guest's spec says of its CPU, its memory's backing and its lesser devices.

Names and meanings are those of the API (``proto/virtd/v1/guest.proto``).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class DiskCache(StrEnum):
    """How the host caches a disk's writes (libvirt: ``driver/@cache``)."""

    NONE = "NONE"
    WRITEBACK = "WRITEBACK"
    WRITETHROUGH = "WRITETHROUGH"
    DIRECTSYNC = "DIRECTSYNC"
    UNSAFE = "UNSAFE"


class LinkState(StrEnum):
    """Whether an interface's cable is plugged in."""

    UP = "UP"
    DOWN = "DOWN"


class PortProtocol(StrEnum):
    """Transport protocol of a forwarded port."""

    TCP = "TCP"
    UDP = "UDP"


class CpuFeaturePolicy(StrEnum):
    """REQUIRE: rejected where the host cannot give it.  DISABLE: the guest does not see it."""

    REQUIRE = "REQUIRE"
    DISABLE = "DISABLE"


class NumaPolicy(StrEnum):
    """How strictly memory comes from the host's NUMA nodes."""

    STRICT = "STRICT"
    PREFERRED = "PREFERRED"
    INTERLEAVE = "INTERLEAVE"


class TpmModel(StrEnum):
    """Interface of an emulated TPM."""

    TIS = "TIS"
    CRB = "CRB"


class WatchdogModel(StrEnum):
    """Model of a watchdog."""

    I6300ESB = "I6300ESB"
    ITCO = "ITCO"


class WatchdogAction(StrEnum):
    """What happens when a watchdog is not fed."""

    RESET = "RESET"
    POWEROFF = "POWEROFF"
    SHUTDOWN = "SHUTDOWN"
    PAUSE = "PAUSE"
    NONE = "NONE"


class FilesystemKind(StrEnum):
    """How a directory of the host is shared."""

    VIRTIOFS = "VIRTIOFS"
    P9 = "P9"


class SoundModel(StrEnum):
    """Model of a sound device."""

    ICH9 = "ICH9"
    ICH6 = "ICH6"
    AC97 = "AC97"


class ClockBase(StrEnum):
    """What the guest's clock shows when it starts."""

    UTC = "UTC"
    LOCALTIME = "LOCALTIME"


@dataclass(frozen=True, slots=True)
class IoTune:
    """Limits of a disk; 0 is "none".  A total excludes the parts of its kind."""

    total_bytes_per_s: int = 0
    read_bytes_per_s: int = 0
    write_bytes_per_s: int = 0
    total_requests_per_s: int = 0
    read_requests_per_s: int = 0
    write_requests_per_s: int = 0


@dataclass(frozen=True, slots=True)
class PortForward:
    """A port of the host that leads to a port of the guest; ``host_address`` empty is loopback."""

    host_port: int
    guest_port: int
    protocol: PortProtocol = PortProtocol.TCP
    host_address: str = ""


@dataclass(frozen=True, slots=True)
class CpuTopology:
    """The product of all four is the largest number of virtual CPUs; ``dies`` 0 is 1."""

    sockets: int
    cores: int
    threads: int
    dies: int = 0


@dataclass(frozen=True, slots=True)
class CpuFeature:
    """One feature on top of the CPU's model."""

    name: str
    policy: CpuFeaturePolicy = CpuFeaturePolicy.REQUIRE


@dataclass(frozen=True, slots=True)
class VcpuPin:
    """Where one virtual CPU may run: ``host_cpus`` like ``0-3,8``."""

    vcpu: int
    host_cpus: str


@dataclass(frozen=True, slots=True)
class CpuSpec:
    """The guest's CPU."""

    topology: CpuTopology | None = None
    model: str = ""
    features: tuple[CpuFeature, ...] = ()
    pins: tuple[VcpuPin, ...] = ()
    emulator_host_cpus: str = ""
    nested: bool | None = None


@dataclass(frozen=True, slots=True)
class MemorySpec:
    """How memory is backed; ``hugepage_bytes`` 0 is ordinary pages."""

    hugepage_bytes: int = 0
    balloon: bool | None = None
    locked: bool = False
    shared: bool = False


@dataclass(frozen=True, slots=True)
class NumaNode:
    """One NUMA node of the guest."""

    vcpus: str
    memory_bytes: int
    host_nodes: str = ""


@dataclass(frozen=True, slots=True)
class NumaSpec:
    """The guest's NUMA nodes, from 0."""

    nodes: tuple[NumaNode, ...] = ()
    policy: NumaPolicy = NumaPolicy.STRICT


@dataclass(frozen=True, slots=True)
class TpmSpec:
    """An emulated TPM 2.0; ``model`` None is the backend's choice."""

    model: TpmModel | None = None


@dataclass(frozen=True, slots=True)
class WatchdogSpec:
    """A watchdog."""

    model: WatchdogModel = WatchdogModel.I6300ESB
    action: WatchdogAction = WatchdogAction.RESET


@dataclass(frozen=True, slots=True)
class FilesystemSpec:
    """A directory of the host that the guest mounts by the tag ``name``."""

    name: str
    path: str
    kind: FilesystemKind = FilesystemKind.VIRTIOFS
    read_only: bool = False


@dataclass(frozen=True, slots=True)
class UsbSpec:
    """Emulated USB devices."""

    tablet: bool = False
    keyboard: bool = False


@dataclass(frozen=True, slots=True)
class SoundSpec:
    """A sound device."""

    model: SoundModel = SoundModel.ICH9


@dataclass(frozen=True, slots=True)
class PciHostDevice:
    """A PCI device of the host by its address ``0000:01:00.0``."""

    address: str


@dataclass(frozen=True, slots=True)
class UsbHostDevice:
    """A USB device of the host: by vendor and product, or by bus and device; 0 is "not said"."""

    vendor_id: int = 0
    product_id: int = 0
    bus: int = 0
    device: int = 0


@dataclass(frozen=True, slots=True)
class HostDeviceSpec:
    """A device of the host that only this guest uses.  Exactly one of ``pci`` and ``usb`` is set."""

    name: str
    pci: PciHostDevice | None = None
    usb: UsbHostDevice | None = None
