"""Guests: what was asked for (spec), what is (status), and the states in between."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from uuid import UUID

from virtd.errors import ErrorRecord
from virtd.model.cloud_init import CloudInitSpec
from virtd.model.devices import (
    ClockBase,
    CpuSpec,
    DiskCache,
    FilesystemSpec,
    HostDeviceSpec,
    IoTune,
    LinkState,
    MemorySpec,
    NumaSpec,
    PortForward,
    SoundSpec,
    TpmSpec,
    UsbSpec,
    WatchdogSpec,
)


class GuestState(StrEnum):
    """Output only.  UNKNOWN means that virtd cannot tell now, never that the guest is gone."""

    UNKNOWN = "UNKNOWN"
    STOPPED = "STOPPED"
    STARTING = "STARTING"
    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    SUSPENDED = "SUSPENDED"
    STOPPING = "STOPPING"
    CRASHED = "CRASHED"


class Presence(StrEnum):
    """Not to see a guest (UNKNOWN) is never to know that it is gone (ABSENT)."""

    PRESENT = "PRESENT"
    ABSENT = "ABSENT"
    UNKNOWN = "UNKNOWN"


class Origin(StrEnum):
    """MANAGED: created or adopted by virtd.  FOREIGN: defined outside, listed, never touched."""

    MANAGED = "MANAGED"
    FOREIGN = "FOREIGN"


class Accelerator(StrEnum):
    """How a guest's CPU runs.

    AUTO: KVM where the host's probe proved it, else TCG.  NATIVE: the hypervisor's own way, on hosts
    without a choice, such as Xen.
    """

    AUTO = "AUTO"
    KVM = "KVM"
    TCG = "TCG"
    NATIVE = "NATIVE"


class Firmware(StrEnum):
    """The guest's firmware."""

    BIOS = "BIOS"
    UEFI = "UEFI"


class DiskFormat(StrEnum):
    """Format of a disk image; always stated, never guessed from content."""

    QCOW2 = "QCOW2"
    RAW = "RAW"


class DiskBus(StrEnum):
    """How the guest sees a disk."""

    VIRTIO = "VIRTIO"
    SCSI = "SCSI"
    SATA = "SATA"
    IDE = "IDE"


class DiskDevice(StrEnum):
    """Kind of block device."""

    DISK = "DISK"
    CDROM = "CDROM"


class InterfaceKind(StrEnum):
    """Where a guest's interface is connected."""

    USER = "USER"
    NETWORK = "NETWORK"
    BRIDGE = "BRIDGE"


class RunStrategy(StrEnum):
    """Who decides that the guest runs.  MANUAL: nobody but the caller."""

    MANUAL = "MANUAL"
    ALWAYS = "ALWAYS"
    HALTED = "HALTED"
    RERUN_ON_FAILURE = "RERUN_ON_FAILURE"
    ONCE = "ONCE"


class StopPolicy(StrEnum):
    """How a guest is brought down."""

    GRACEFUL = "GRACEFUL"
    GRACEFUL_THEN_FORCE = "GRACEFUL_THEN_FORCE"
    FORCE = "FORCE"


class ConditionType(StrEnum):
    """Facts about a guest that are separate from its state: running is not ready."""

    BOOTED = "BOOTED"
    AGENT_READY = "AGENT_READY"
    CLOUD_INIT_DONE = "CLOUD_INIT_DONE"
    NETWORK_READY = "NETWORK_READY"
    FILESYSTEMS_FROZEN = "FILESYSTEMS_FROZEN"
    CRASH_LOOP = "CRASH_LOOP"


class ConditionStatus(StrEnum):
    """Three-valued: UNKNOWN is not FALSE."""

    TRUE = "TRUE"
    FALSE = "FALSE"
    UNKNOWN = "UNKNOWN"


@dataclass(frozen=True, slots=True)
class Condition:
    """One condition with since when and why."""

    type: ConditionType
    status: ConditionStatus
    reason: str = ""
    message: str = ""
    change_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class DirectKernelBoot:
    """Kernel and initial RAM disk as files of the host, inside the allowed directories."""

    kernel_path: str
    initrd_path: str = ""
    command_line: str = ""


@dataclass(frozen=True, slots=True)
class BlankSource:
    """A new, empty volume."""

    capacity_bytes: int
    format: DiskFormat = DiskFormat.QCOW2
    pool: str = ""


@dataclass(frozen=True, slots=True)
class ImageSource:
    """A new volume made from an image of the catalogue (``images/{image}``).

    ``capacity_bytes`` None keeps the image's size; it may grow, never shrink.
    ``copy`` makes the volume independent; otherwise it is an overlay of the image.
    """

    image: str
    format: DiskFormat = DiskFormat.QCOW2
    pool: str = ""
    capacity_bytes: int | None = None
    copy: bool = False


@dataclass(frozen=True, slots=True)
class HostFileSource:
    """A file of the host, inside the allowed directories.  virtd never creates or deletes it."""

    path: str
    format: DiskFormat


@dataclass(frozen=True, slots=True)
class DiskSpec:
    """One disk.  One of ``blank``, ``image``, ``volume``, ``host_file`` is set; a CD-ROM drive may have none."""

    name: str
    blank: BlankSource | None = None
    image: ImageSource | None = None
    volume: str | None = None
    host_file: HostFileSource | None = None
    bus: DiskBus | None = None
    device: DiskDevice | None = None
    read_only: bool = False
    boot_order: int | None = None
    cache: DiskCache | None = None
    io_tune: IoTune | None = None
    discard: bool = False
    serial: str = ""


@dataclass(frozen=True, slots=True)
class InterfaceSpec:
    """One network interface.  ``network`` names a network of the host for kind NETWORK, a bridge for BRIDGE."""

    name: str
    kind: InterfaceKind = InterfaceKind.USER
    network: str = ""
    mac: str = ""
    model: str = ""
    port_forwards: tuple[PortForward, ...] = ()
    link_state: LinkState | None = None
    mtu: int | None = None
    boot_order: int | None = None


@dataclass(frozen=True, slots=True)
class GraphicsSpec:
    """A graphical console.  ``listen`` is an address of the host; loopback by default."""

    vnc: bool = True
    listen: str = ""
    video_model: str = ""


@dataclass(frozen=True, slots=True)
class GuestSpec:
    """What a guest shall be.  ``None`` is "not said": the core or the backend fills a default."""

    vcpus: int | None = None
    memory_bytes: int | None = None
    accelerator: Accelerator | None = None
    firmware: Firmware | None = None
    machine: str = ""
    direct_kernel_boot: DirectKernelBoot | None = None
    disks: tuple[DiskSpec, ...] = ()
    interfaces: tuple[InterfaceSpec, ...] = ()
    serial_console: bool | None = None
    guest_agent: bool | None = None
    graphics: GraphicsSpec | None = None
    run_strategy: RunStrategy | None = None
    backend_options: Mapping[str, str] = field(default_factory=dict)
    max_vcpus: int | None = None
    max_memory_bytes: int | None = None
    cpu: CpuSpec | None = None
    memory: MemorySpec | None = None
    numa: NumaSpec | None = None
    secure_boot: bool = False
    tpm: TpmSpec | None = None
    rng: bool | None = None
    watchdog: WatchdogSpec | None = None
    filesystems: tuple[FilesystemSpec, ...] = ()
    usb: UsbSpec | None = None
    sound: SoundSpec | None = None
    host_devices: tuple[HostDeviceSpec, ...] = ()
    cloud_init: CloudInitSpec | None = None
    autostart: bool = False
    deletion_protection: bool = False
    clock: ClockBase | None = None


@dataclass(frozen=True, slots=True)
class DiskStatus:
    """A disk as it is.  ``volume`` is a resource name where the file lies in a pool of the host."""

    name: str
    path: str = ""
    volume: str = ""
    target: str = ""
    format: str = ""
    bus: str = ""
    device: DiskDevice | None = None
    read_only: bool = False
    capacity_bytes: int | None = None
    allocation_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class InterfaceStatus:
    """An interface as it is."""

    name: str
    mac: str = ""
    kind: str = ""
    network: str = ""
    model: str = ""
    target: str = ""
    link_state: LinkState | None = None


@dataclass(frozen=True, slots=True)
class GuestAddress:
    """One address that a guest has.  ``source`` says who claims it: AGENT, LEASE or ARP."""

    interface: str
    mac: str
    address: str
    prefix_length: int
    source: str


@dataclass(frozen=True, slots=True)
class GuestStatus:
    """What a guest is now, as far as virtd knows.

    ``stale_since`` is set while the host does not answer: everything else is then what was last seen.
    ``state_reason`` is virtd's word for why (``SHUTDOWN``, ``DESTROYED``, ``CRASHED`` ...),
    ``native_state`` the hypervisor's own.
    """

    state: GuestState = GuestState.UNKNOWN
    state_reason: str = ""
    native_state: str = ""
    presence: Presence = Presence.UNKNOWN
    state_change_time: datetime | None = None
    conditions: tuple[Condition, ...] = ()
    allowed_actions: tuple[str, ...] = ()
    current_operations: tuple[str, ...] = ()
    addresses: tuple[GuestAddress, ...] = ()
    disks: tuple[DiskStatus, ...] = ()
    interfaces: tuple[InterfaceStatus, ...] = ()
    accelerator: Accelerator | None = None
    accelerator_reason: str = ""
    graphics_address: str = ""
    origin: Origin = Origin.FOREIGN
    stale_since: datetime | None = None
    last_error: ErrorRecord | None = None
    pending_restart_fields: tuple[str, ...] = ()
    vcpus: int | None = None
    memory_bytes: int | None = None
    unmodelled: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Guest:
    """A guest: identity, spec, status.  ``name`` is ``hosts/{host}/guests/{guest}``.

    ``uid`` never changes, also not by a move between hosts.  ``native_ref`` is the hypervisor's
    own identity (libvirt: the domain's UUID).  ``etag`` changes with spec, labels and annotations.
    """

    name: str
    uid: UUID
    spec: GuestSpec
    status: GuestStatus
    display_name: str = ""
    native_ref: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    generation: int = 0
    etag: str = ""
    create_time: datetime | None = None
    update_time: datetime | None = None
