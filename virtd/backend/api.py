"""What a backend implements: level 0, which is required, and one facet per optional ability.

Level 0 is :class:`Backend` (stateless, made once) and :class:`HostSession` (one per host and
connection).  The facets are separate Protocols, collected in :class:`Facets`: a field that is not
None, together with the probe's word, is a capability.

Longer than 500 lines because it is read from top to bottom by whoever writes a backend: the whole
contract in one place.

Rules for every method
----------------------
* **Stateless per call.** The truth is the hypervisor's; sessions keep connections, not facts.
* **Ids first.** UUIDs, MAC addresses, volume names and paths are chosen by the core before the
  first side effect.  A backend never invents one.
* **Idempotent.** ``define_guest`` of a guest that exists with the same UUID redefines it;
  ``undefine_guest``, ``stop_guest``, ``delete_*`` succeed when the work is already done;
  ``start_guest`` of a running guest succeeds.  Recovery after a crash depends on this.
* **All or nothing.** A ``define_guest``, ``create_volume`` or ``create_snapshot`` that raises
  leaves nothing behind.
* **Only contract errors escape** (:mod:`virtd.errors`).  Anything else is a defect and reaches the
  caller as BACKEND_ERROR.  The native call, code and message go into ``NativeError``.
* **Absent is known.** NotFoundError means that the hypervisor said so.  A time-out, a lost
  connection or a stopped daemon is UnavailableError (HOST_UNREACHABLE).
* **Never invent a value.** Unknown is None; zero is a measured zero.
* **Never block the event loop.** Blocking calls run on the session's own executor.
* **Concurrency.** The core serialises calls that change one guest; calls for different guests, and
  reads, run in parallel.
* **Long calls take a** :class:`CallContext` and look at it often enough that a cancel takes effect
  within a few seconds.  When ``context.checkpoint()`` raises, undo what the call did, then let it
  pass.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Final, Protocol, runtime_checkable
from uuid import UUID

from virtd.backend.facets_agent import AgentFacet as AgentFacet
from virtd.backend.facets_agent import AgentFile as AgentFile
from virtd.backend.facets_agent import AgentProcess as AgentProcess
from virtd.backend.facets_agent import DisplayFacet as DisplayFacet
from virtd.backend.facets_backup import BackupFacet as BackupFacet
from virtd.backend.facets_backup import BackupReader as BackupReader
from virtd.backend.facets_backup import BackupRequest as BackupRequest
from virtd.backend.facets_backup import DiskIdentity as DiskIdentity
from virtd.backend.facets_backup import DiskRange as DiskRange
from virtd.backend.facets_backup import SourceDisk as SourceDisk
from virtd.backend.facets_diagnosis import DiagnosisFacet
from virtd.backend.facets_lifecycle import AutostartFacet as AutostartFacet
from virtd.backend.facets_lifecycle import DefinitionFacet as DefinitionFacet
from virtd.backend.facets_lifecycle import DiskFile as DiskFile
from virtd.backend.facets_migration import MigrationFacet as MigrationFacet
from virtd.backend.facets_migration import MigrationOrder as MigrationOrder
from virtd.backend.facets_migration import MigrationSide as MigrationSide
from virtd.backend.facets_migration import MigrationTimes as MigrationTimes
from virtd.backend.facets_migration import MovedDisk as MovedDisk
from virtd.backend.facets_network import NetworkChangeFacet as NetworkChangeFacet
from virtd.backend.facets_network import NetworkRequest as NetworkRequest
from virtd.backend.facets_parts import VolumePartsFacet as VolumePartsFacet
from virtd.backend.facets_snapshots import SnapshotFacet as SnapshotFacet
from virtd.backend.facets_snapshots import SnapshotPlan as SnapshotPlan
from virtd.backend.facets_snapshots import SnapshotRequest as SnapshotRequest
from virtd.backend.facets_storage import Extent as Extent
from virtd.backend.facets_storage import Hole as Hole
from virtd.backend.facets_storage import PoolFacet as PoolFacet
from virtd.backend.facets_storage import PoolRequest as PoolRequest
from virtd.backend.facets_storage import VolumeChangeFacet as VolumeChangeFacet
from virtd.backend.facets_storage import VolumeContent as VolumeContent
from virtd.backend.facets_storage import VolumeTransferFacet as VolumeTransferFacet
from virtd.backend.facets_update import FieldEffect as FieldEffect
from virtd.backend.facets_update import UpdateEffect as UpdateEffect
from virtd.backend.facets_update import UpdateFacet as UpdateFacet
from virtd.model.console import Screenshot
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
from virtd.model.guest import (
    Accelerator,
    DirectKernelBoot,
    DiskBus,
    DiskDevice,
    DiskFormat,
    DiskStatus,
    Firmware,
    GraphicsSpec,
    GuestAddress,
    GuestSpec,
    GuestState,
    InterfaceKind,
    InterfaceStatus,
)
from virtd.model.host import Capability, HostFacts
from virtd.model.metrics import GuestMetrics
from virtd.model.network import Network
from virtd.model.storage import Pool, Preallocation, Volume


class CallContext(Protocol):
    """What a long call is given: how to report, and when to give up."""

    @property
    def operation_id(self) -> str:
        """The operation's id, for logs and native metadata; ``""`` outside an operation."""

    @property
    def deadline_s(self) -> float | None:
        """Seconds left, or None for no limit."""

    def progress(
        self, fraction: float | None = None, *, bytes_done: int | None = None, bytes_total: int | None = None
    ) -> None:
        """Report how far the call is: 0..1 within this call, never going back.  Cheap, call it freely."""

    def note(self, message: str) -> None:
        """Add a line to the operation's reason trail."""

    def warn(self, message: str) -> None:
        """Add a warning that the caller of the RPC sees."""

    def checkpoint(self) -> None:
        """Give up here if asked to.

        :raises virtd.errors.CancelledError: OPERATION_CANCELLED, when the operation was cancelled.
        :raises virtd.errors.DeadlineExceededError: when its time is over.
        """

    async def wait_cancelled(self) -> None:
        """Return when a cancel is requested (for racing against a native wait)."""


# --------------------------------------------------------------------------------- descriptor


@dataclass(frozen=True, slots=True)
class OptionSchema:
    """One key of ``spec.backend_options`` that this backend understands."""

    name: str
    description: str
    values: tuple[str, ...] = ()
    default: str = ""


@dataclass(frozen=True, slots=True)
class BackendDescriptor:
    """What a backend says of itself, without any host.

    :param id: short, lower case, stable (``kvm``).
    :param uri_schemes: schemes of host URIs that it takes (``qemu``, ``qemu+ssh``).
    :param capabilities: DECLARED: what a good host can do, with the reason for each "no".
    :param native_format: what :meth:`HostSession.lower` writes (``libvirt-xml``).
    """

    id: str
    title: str
    version: str
    uri_schemes: tuple[str, ...]
    capabilities: tuple[Capability, ...]
    native_format: str
    options: tuple[OptionSchema, ...] = ()


@dataclass(frozen=True, slots=True)
class HostConfig:
    """One host as configured.

    :param id: the host's id in resource names.
    :param directory: a directory of virtd's own for this host, for what a session must keep on
        the local disk (it exists, mode 0700).
    :param allowed_directories: where host paths in a spec may lie (resolved, absolute).
    :param call_timeout_s: after this time a call that has not answered is given up as unreachable.
    :param options: backend options of the host's configuration.
    """

    id: str
    uri: str
    directory: str
    allowed_directories: tuple[str, ...] = ()
    call_timeout_s: float = 30.0
    workers: int = 4
    options: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class HostCandidate:
    """A hypervisor that was found on this machine.  ``id`` is a proposal for the host's id."""

    id: str
    uri: str
    title: str


# ------------------------------------------------------------------------- a guest, going down


@dataclass(frozen=True, slots=True)
class ResolvedDisk:
    """A disk whose file exists (or will, before define): nothing is left to choose.

    ``path`` is empty for a CD-ROM drive without a medium.
    """

    name: str
    path: str
    format: DiskFormat
    bus: DiskBus
    device: DiskDevice = DiskDevice.DISK
    read_only: bool = False
    boot_order: int | None = None
    cache: DiskCache | None = None
    io_tune: IoTune | None = None
    discard: bool = False
    serial: str = ""


@dataclass(frozen=True, slots=True)
class ResolvedInterface:
    """An interface with its MAC address."""

    name: str
    kind: InterfaceKind
    mac: str
    network: str = ""
    model: str = ""
    port_forwards: tuple[PortForward, ...] = ()
    link_state: LinkState | None = None
    mtu: int | None = None
    boot_order: int | None = None


@dataclass(frozen=True, slots=True)
class ResolvedGuest:
    """A guest spec after the core has made every choice.  The input of :meth:`HostSession.lower`.

    ``accelerator`` is never AUTO.  ``name`` is the native name (unique on the host).
    """

    uuid: UUID
    name: str
    vcpus: int
    memory_bytes: int
    accelerator: Accelerator
    firmware: Firmware = Firmware.BIOS
    machine: str = ""
    direct_kernel_boot: DirectKernelBoot | None = None
    disks: tuple[ResolvedDisk, ...] = ()
    interfaces: tuple[ResolvedInterface, ...] = ()
    serial_console: bool = True
    guest_agent: bool = True
    graphics: GraphicsSpec | None = None
    backend_options: dict[str, str] = field(default_factory=dict)
    max_vcpus: int | None = None
    max_memory_bytes: int | None = None
    cpu: CpuSpec | None = None
    memory: MemorySpec | None = None
    numa: NumaSpec | None = None
    secure_boot: bool = False
    tpm: TpmSpec | None = None
    rng: bool = True
    watchdog: WatchdogSpec | None = None
    filesystems: tuple[FilesystemSpec, ...] = ()
    usb: UsbSpec | None = None
    sound: SoundSpec | None = None
    host_devices: tuple[HostDeviceSpec, ...] = ()
    autostart: bool = False
    clock: ClockBase | None = None


class Fidelity(StrEnum):
    """How faithfully a field of the spec is carried out."""

    EXACT = "EXACT"
    EMULATED = "EMULATED"
    DEGRADED = "DEGRADED"
    IGNORED = "IGNORED"
    REJECTED = "REJECTED"


@dataclass(frozen=True, slots=True)
class FieldVerdict:
    """What becomes of one field (``spec.disks[0].bus``); a reason is mandatory unless EXACT."""

    field: str
    fidelity: Fidelity
    reason: str = ""
    alternatives: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class NativePlan:
    """The native configuration of a guest, and what became of each field that is not EXACT."""

    native: str
    verdicts: tuple[FieldVerdict, ...] = ()


# --------------------------------------------------------------------------- a guest, coming up


@dataclass(frozen=True, slots=True)
class GuestSummary:
    """What a bulk list gives for each guest, without a native call per guest."""

    uuid: UUID
    name: str
    state: GuestState
    native_state: str = ""
    state_reason: str = ""


@dataclass(frozen=True, slots=True)
class NativeGuest:
    """One guest in full, as the hypervisor describes it now."""

    uuid: UUID
    name: str
    state: GuestState
    spec: GuestSpec
    native_state: str = ""
    state_reason: str = ""
    native_ref: str = ""
    disks: tuple[DiskStatus, ...] = ()
    interfaces: tuple[InterfaceStatus, ...] = ()
    accelerator: Accelerator | None = None
    graphics_address: str = ""
    persistent: bool = True
    has_saved_state: bool = False
    vcpus: int | None = None
    memory_bytes: int | None = None
    pending_restart_fields: tuple[str, ...] = ()
    unmodelled: tuple[str, ...] = ()


class NativeEventType(StrEnum):
    """What a session reports; the core re-reads the guest where it needs more."""

    GUEST_DEFINED = "GUEST_DEFINED"
    GUEST_UNDEFINED = "GUEST_UNDEFINED"
    GUEST_STATE = "GUEST_STATE"
    GUEST_CHANGED = "GUEST_CHANGED"
    GUEST_REBOOTED = "GUEST_REBOOTED"
    GUEST_WATCHDOG = "GUEST_WATCHDOG"
    AGENT_CONNECTED = "AGENT_CONNECTED"
    AGENT_DISCONNECTED = "AGENT_DISCONNECTED"
    CONNECTED = "CONNECTED"
    DISCONNECTED = "DISCONNECTED"


@dataclass(frozen=True, slots=True)
class NativeEvent:
    """One event of a host, in the order in which the hypervisor gave them.

    ``uuid`` is None for events of the host itself.  ``state`` is set for GUEST_STATE: the state
    *after* the event.  ``reason`` is a stable word in capitals (``SHUTDOWN``, ``CRASHED``).
    After CONNECTED the core resyncs: events may have been lost before it.
    """

    type: NativeEventType
    time: datetime
    uuid: UUID | None = None
    name: str = ""
    state: GuestState | None = None
    reason: str = ""
    detail: str = ""


# --------------------------------------------------------------------------------------- facets


class ShutdownFacet(Protocol):
    """Ask the guest's system to shut down."""

    async def request_shutdown(self, uuid: UUID, context: CallContext) -> None:
        """Press the power button once and return at once; the core waits, presses again, gives up.

        :raises FailedPreconditionError: INVALID_STATE, the guest does not run.
        """


class RebootFacet(Protocol):
    """Ask the guest's system to reboot."""

    async def request_reboot(self, uuid: UUID, context: CallContext) -> None:
        """Ask once and return at once.  Not idempotent.

        When the guest begins to boot anew, the session reports GUEST_REBOOTED: the core waits for it.

        :raises FailedPreconditionError: INVALID_STATE, the guest does not run.
        """


class ResetFacet(Protocol):
    """The reset button."""

    async def reset_guest(self, uuid: UUID, context: CallContext) -> None:
        """Reset at once, without the guest's cooperation.  Not idempotent.

        :raises FailedPreconditionError: INVALID_STATE, the guest does not run.
        """


class PauseFacet(Protocol):
    """Stop and continue a guest's virtual CPUs; memory stays."""

    async def pause_guest(self, uuid: UUID, context: CallContext) -> None:
        """Pause; a paused guest stays paused (success).

        :raises FailedPreconditionError: INVALID_STATE, the guest is stopped.
        """

    async def resume_guest(self, uuid: UUID, context: CallContext) -> None:
        """Continue; a running guest stays running (success).

        :raises FailedPreconditionError: INVALID_STATE, the guest is stopped.
        """


class SuspendFacet(Protocol):
    """Save a running guest to disk; ``start_guest`` restores it."""

    async def suspend_guest(self, uuid: UUID, context: CallContext) -> None:
        """Save and stop; a suspended guest stays so (success).  Cancellable: it then runs on.

        :raises FailedPreconditionError: INVALID_STATE, the guest is stopped; or it is paused, where its system has to
            do its part.
        :raises DeadlineExceededError: SUSPEND_IGNORED, its system did not; the guest runs on.
        """

    async def discard_saved_state(self, uuid: UUID, context: CallContext) -> None:
        """Throw the saved state away: SUSPENDED becomes STOPPED.  Idempotent."""


@dataclass(frozen=True, slots=True)
class VolumeRequest:
    """A volume to create.

    ``source_path`` is a file to fill it from (with its format), or empty for a blank volume;
    ``overlay`` makes it a copy-on-write child of that file instead of a copy.
    """

    pool: str
    name: str
    format: DiskFormat
    capacity_bytes: int | None = None
    source_path: str = ""
    source_format: DiskFormat | None = None
    overlay: bool = False
    preallocation: Preallocation = Preallocation.NONE


DEFAULT_POOL: Final = "virtd"
"""The id of the pool that :meth:`StorageFacet.ensure_default_pool` makes."""


class StorageFacet(Protocol):
    """Pools and volumes.  Names of the returned records are bare ids here."""

    async def list_pools(self) -> Sequence[Pool]:
        """All pools of the host."""

    async def ensure_default_pool(self, context: CallContext) -> Pool:
        """The pool for disks that name none: :data:`DEFAULT_POOL`, made in ``HostConfig.directory`` if need be.

        Idempotent.  Its directory is ``HostConfig.directory`` + ``/pool``.
        """

    async def list_volumes(self, pool: str) -> Sequence[Volume]:
        """The volumes of a pool, after a refresh.

        :raises NotFoundError: POOL_NOT_FOUND.
        """

    async def volume_path(self, pool: str, name: str) -> str:
        """Where a volume of this name lies or would lie.  No side effect.

        :raises NotFoundError: POOL_NOT_FOUND.
        """

    async def create_volume(self, request: VolumeRequest, context: CallContext) -> Volume:
        """Create it.  Cancellable, reports bytes.

        :raises AlreadyExistsError: VOLUME_EXISTS; the existing volume is not touched.
        :raises ResourceExhaustedError: STORAGE_FULL; nothing is left behind.
        """

    async def delete_volume(self, pool: str, name: str, context: CallContext) -> None:
        """Delete it.  Idempotent."""


class NetworkFacet(Protocol):
    """The host's networks."""

    async def list_networks(self) -> Sequence[Network]:
        """All networks.  ``Network.name`` is the bare id here."""


class ConsoleStream(Protocol):
    """An open serial console.  Used by one task for reading and one for writing."""

    async def read(self) -> bytes:
        """The next bytes, at least one; ``b""`` when the console has closed (the guest stopped)."""

    async def write(self, data: bytes) -> None:
        """Send all of ``data``.

        :raises UnavailableError: the console has closed.
        """

    async def close(self) -> None:
        """Release it.  Idempotent; a pending read returns ``b""``."""


class SerialConsoleFacet(Protocol):
    """The first serial port.  The core shares one stream among all its clients."""

    async def open_console(self, uuid: UUID) -> ConsoleStream:
        """Open it, taking it over from a stale holder.

        :raises FailedPreconditionError: INVALID_STATE, the guest does not run.
        :raises UnsupportedError: the guest has no serial console.
        """


class ScreenshotFacet(Protocol):
    """A picture of the first display."""

    async def screenshot(self, uuid: UUID) -> Screenshot:
        """PNG.

        :raises FailedPreconditionError: INVALID_STATE, the guest does not run.
        :raises UnsupportedError: the guest has no display.
        """


class AddressFacet(Protocol):
    """Network addresses."""

    async def guest_addresses(self, uuid: UUID) -> Sequence[GuestAddress]:
        """Addresses from every source the host has, agent first.  Loopback is left out.

        Quick (under two seconds); a source that does not answer is left out, so an empty list
        means "none known".
        """


class MetricsFacet(Protocol):
    """Usage counters of all guests at once."""

    async def sample_guests(self) -> Sequence[GuestMetrics]:
        """One bulk call; active guests only; a busy guest is left out rather than waited for."""


class EventSourceFacet(Protocol):
    """Changes as the hypervisor reports them."""

    def events(self) -> AsyncIterator[NativeEvent]:
        """All events from now on, in order, until the session closes.  One consumer.

        The iterator survives lost connections: DISCONNECTED, then CONNECTED when it is back.
        """


@dataclass(frozen=True, slots=True)
class Facets:
    """What a session can do beyond level 0.  None: it cannot."""

    shutdown: ShutdownFacet | None = None
    reboot: RebootFacet | None = None
    reset: ResetFacet | None = None
    pause: PauseFacet | None = None
    suspend: SuspendFacet | None = None
    snapshots: SnapshotFacet | None = None
    storage: StorageFacet | None = None
    pools: PoolFacet | None = None
    volume_changes: VolumeChangeFacet | None = None
    volume_transfer: VolumeTransferFacet | None = None
    volume_parts: VolumePartsFacet | None = None
    networks: NetworkFacet | None = None
    network_changes: NetworkChangeFacet | None = None
    serial_console: SerialConsoleFacet | None = None
    screenshot: ScreenshotFacet | None = None
    agent: AgentFacet | None = None
    display: DisplayFacet | None = None
    addresses: AddressFacet | None = None
    metrics: MetricsFacet | None = None
    event_source: EventSourceFacet | None = None
    diagnosis: DiagnosisFacet | None = None
    definitions: DefinitionFacet | None = None
    autostart: AutostartFacet | None = None
    backup: BackupFacet | None = None
    update: UpdateFacet | None = None
    migration: MigrationFacet | None = None


# --------------------------------------------------------------------------------------- level 0


class HostSession(Protocol):
    """One host, opened.  Without an event source the core polls ``list_guests``."""

    @property
    def facets(self) -> Facets:
        """The optional abilities; constant for the session's life."""

    async def close(self) -> None:
        """Release everything.  Guests keep running.  Idempotent."""

    async def probe(self) -> HostFacts:
        """Look at the host for real; capabilities carry provenance PROBED where something was tried.

        :raises UnavailableError: HOST_UNREACHABLE.
        """

    async def list_guests(self) -> Sequence[GuestSummary]:
        """All guests, virtd's or not, active or not, in one or two native calls.

        :raises UnavailableError: HOST_UNREACHABLE; never a partial list.
        """

    async def get_guest(self, uuid: UUID) -> NativeGuest:
        """One guest in full.

        :raises NotFoundError: GUEST_NOT_FOUND: the hypervisor says that there is none.
        :raises UnavailableError: HOST_UNREACHABLE: it cannot be asked.
        """

    def lower(self, guest: ResolvedGuest) -> NativePlan:
        """Translate to the native configuration.  Pure: no I/O, same input, same output.

        Fields that cannot be done are REJECTED verdicts, with a reason and alternatives.
        """

    async def define_guest(self, guest: ResolvedGuest, context: CallContext) -> NativeGuest:
        """Make the guest known to the hypervisor, stopped.  Redefines one with the same UUID.

        :raises AlreadyExistsError: GUEST_EXISTS, another guest has this name.
        :raises InvalidArgumentError: FIELD_UNSUPPORTED for every REJECTED verdict.
        """

    async def undefine_guest(self, uuid: UUID, context: CallContext) -> None:
        """Forget the guest, with its snapshots' metadata and firmware variables; disks stay.

        Idempotent.

        :raises FailedPreconditionError: INVALID_STATE, the guest is active.
        """

    async def start_guest(self, uuid: UUID, context: CallContext) -> None:
        """Start, or restore from the saved state.  Success when it already runs.

        :raises NotFoundError: GUEST_NOT_FOUND.
        """

    async def stop_guest(self, uuid: UUID, context: CallContext) -> None:
        """Cut the power, whatever the state, unknown ones included.

        Idempotent: a guest that is stopped, suspended (its saved state stays) or not there succeeds.
        """


class Backend(Protocol):
    """A hypervisor's translator.  Made once by the plugin; holds no connection."""

    @property
    def descriptor(self) -> BackendDescriptor:
        """Constant."""

    async def discover(self) -> Sequence[HostCandidate]:
        """Hypervisors of this machine that answer now.  Quick (two seconds), never raises for "none"."""

    async def open(self, config: HostConfig) -> HostSession:
        """Connect.  May be abandoned by the core after its time limit.

        :raises InvalidArgumentError: CONFIG_INVALID, the URI or an option is wrong.
        :raises UnavailableError: HOST_UNREACHABLE; the core tries again later.
        """


@runtime_checkable
class EmbeddingBackend(Protocol):
    """A backend that can run a hypervisor service of virtd's own where the machine offers none.  Optional."""

    async def embedded(self, directory: str) -> HostCandidate | None:
        """Start, or find again, the private service that lives in ``directory``.

        It outlives virtd, and so do its guests.  Idempotent.  None: not possible on this machine.

        :raises UnavailableError: LIBVIRT_MISSING or the like, with what to install.
        """


@runtime_checkable
class CheckingBackend(Protocol):
    """A backend that can tell from a host's configuration alone that it will never work.  Optional."""

    def check_host(self, config: HostConfig) -> None:
        """Look at the URI, the options, and the files of virtd's machine that they name.  No connection is made.

        :raises InvalidArgumentError: CONFIG_INVALID, with what to do.
        """
