"""From a spec to a guest in which nothing is left to choose.

Everything that has to be invented (UUID, MAC addresses, volume names) is invented here, before the
journal row is written; carrying it out twice then gives the same guest.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace
from typing import Final
from uuid import UUID

from virtd.backend import capabilities as cap
from virtd.backend.api import (
    DEFAULT_POOL,
    Fidelity,
    NativePlan,
    ResolvedDisk,
    ResolvedGuest,
    ResolvedInterface,
)
from virtd.errors import (
    FIELD_INVALID,
    FIELD_UNSUPPORTED,
    POOL_NOT_FOUND,
    FieldViolation,
    InvalidArgumentError,
    NotFoundError,
    UnsupportedError,
)
from virtd.inventory import HostLink
from virtd.model.devices import ClockBase
from virtd.model.guest import (
    Accelerator,
    DiskBus,
    DiskDevice,
    DiskFormat,
    DiskSpec,
    Firmware,
    GraphicsSpec,
    GuestSpec,
    InterfaceKind,
    RunStrategy,
)
from virtd.model.host import GuestDefaults, HostFacts
from virtd.model.names import parse, shown
from virtd.service.catalogue import ImageCatalogue
from virtd.service.cloud_seed import DISK_NAME, seed_name
from virtd.service.core import is_local
from virtd.service.resolve_host import check_host
from virtd.service.validate import check_spec

_OUI: Final = "52:54:00"
"""The prefix that QEMU and KVM guests use by custom; locally administered."""


@dataclass(frozen=True, slots=True)
class PlannedVolume:
    """A volume to create for a disk.  ``pool`` empty: the host's default pool."""

    disk: str
    pool: str
    name: str
    format: DiskFormat
    capacity_bytes: int | None = None
    source_path: str = ""
    source_format: DiskFormat | None = None
    overlay: bool = False
    send: bool = False
    """The source is an image of the daemon's machine, which is not the host's: it is sent there first."""
    seed: bool = False
    """The cloud-init seed: made of the specification when its turn comes, so that no secret lies about."""


@dataclass(frozen=True, slots=True)
class Resolution:
    """A guest with all choices made; disks still lack their paths."""

    spec: GuestSpec
    volumes: tuple[PlannedVolume, ...]
    accelerator: Accelerator
    accelerator_reason: str


def with_defaults(spec: GuestSpec, host: GuestDefaults) -> GuestSpec:
    """The spec with every default written out, MAC addresses included.

    :param host: what depends on the host.
    """
    return replace(
        spec,
        vcpus=spec.vcpus or 1,
        accelerator=spec.accelerator or Accelerator.AUTO,
        firmware=spec.firmware or Firmware.BIOS,
        machine=spec.machine or (host.disk_machine if spec.direct_kernel_boot is None else host.kernel_machine),
        serial_console=True if spec.serial_console is None else spec.serial_console,
        guest_agent=host.guest_agent if spec.guest_agent is None else spec.guest_agent,
        graphics=spec.graphics or GraphicsSpec(vnc=host.graphics),
        run_strategy=spec.run_strategy or RunStrategy.MANUAL,
        rng=host.rng if spec.rng is None else spec.rng,
        clock=spec.clock or ClockBase.UTC,
        disks=tuple(_disk_defaults(disk, host) for disk in spec.disks),
        interfaces=tuple(
            replace(interface, mac=interface.mac.lower() or random_mac()) for interface in spec.interfaces
        ),
    )


def random_mac() -> str:
    """A random address of the range that KVM guests use."""
    tail = secrets.token_bytes(3)
    return _OUI + "".join(f":{byte:02x}" for byte in tail)


async def resolve(
    link: HostLink, spec: GuestSpec, guest_id: str, uid: UUID, images: ImageCatalogue, allowed: tuple[str, ...]
) -> Resolution:
    """Check a spec against a host and make all choices.  No side effect.

    :raises InvalidArgumentError: FIELD_INVALID, FIELD_UNSUPPORTED or PATH_NOT_ALLOWED.
    :raises NotFoundError: IMAGE_NOT_FOUND, POOL_NOT_FOUND, VOLUME_NOT_FOUND or NETWORK_NOT_FOUND.
    :raises UnavailableError: HOST_UNREACHABLE.
    """
    check_spec(spec, link.id)
    facts = await link.facts()
    spec = with_defaults(spec, facts.guest_defaults)
    spec = check_host(link, spec, allowed)
    if spec.machine and facts.machines and spec.machine not in facts.machines:
        why = f"the host has no machine type {shown(spec.machine)}"
        raise _unsupported("guest.spec.machine", why, *facts.machines)
    accelerator, reason = choose_accelerator(spec, facts)
    volumes: list[PlannedVolume] = []
    for index, disk in enumerate(spec.disks):
        planned = await _plan_disk(link, disk, index, f"{guest_id}-{disk.name}-{uid.hex[:8]}", images)
        if planned is not None:
            volumes.append(planned)
    seed = await _plan_seed(link, spec, uid)
    if seed is not None:
        volumes.append(seed)
    await _check_networks(link, spec)
    return Resolution(spec, tuple(volumes), accelerator, reason)


async def lower(link: HostLink, guest_id: str, uid: UUID, resolution: Resolution) -> tuple[ResolvedGuest, NativePlan]:
    """What a resolution becomes on its host.  No side effect.

    :raises InvalidArgumentError: FIELD_UNSUPPORTED for what the backend rejects.
    """
    guest = await resolved_guest(link, guest_id, uid, resolution)
    plan = link.session.lower(guest)
    rejected = [verdict for verdict in plan.verdicts if verdict.fidelity is Fidelity.REJECTED]
    if rejected:
        raise InvalidArgumentError(
            FIELD_UNSUPPORTED,
            "; ".join(f"guest.{verdict.field}: {verdict.reason}" for verdict in rejected),
            resource=f"hosts/{link.id}",
            violations=tuple(FieldViolation(f"guest.{v.field}", v.reason, v.alternatives) for v in rejected),
        )
    return guest, plan


async def resolved_guest(link: HostLink, guest_id: str, uid: UUID, resolution: Resolution) -> ResolvedGuest:
    """Fill in the paths of the disks; nothing else is left open."""
    spec = resolution.spec
    planned = {volume.disk: volume for volume in resolution.volumes}
    disks = [await _resolved_disk(link, disk, planned.get(disk.name)) for disk in spec.disks]
    first = next((index for index, disk in enumerate(disks) if disk.path), None)
    orders = (*(disk.boot_order for disk in disks), *(interface.boot_order for interface in spec.interfaces))
    if first is not None and all(order is None for order in orders):
        disks[first] = replace(disks[first], boot_order=1)
    if spec.cloud_init is not None:
        disks.append(await _seed_disk(link, planned_seed(spec, uid)))
    return ResolvedGuest(
        uuid=uid,
        name=guest_id,
        vcpus=spec.vcpus or 1,
        memory_bytes=spec.memory_bytes or 0,
        accelerator=resolution.accelerator,
        firmware=spec.firmware or Firmware.BIOS,
        machine=spec.machine,
        direct_kernel_boot=spec.direct_kernel_boot,
        disks=tuple(disks),
        interfaces=tuple(
            ResolvedInterface(
                name=interface.name,
                kind=interface.kind,
                mac=interface.mac,
                network=interface.network,
                model=interface.model,
                port_forwards=interface.port_forwards,
                link_state=interface.link_state,
                mtu=interface.mtu,
                boot_order=interface.boot_order,
            )
            for interface in spec.interfaces
        ),
        serial_console=spec.serial_console is not False,
        guest_agent=spec.guest_agent is not False,
        graphics=spec.graphics,
        backend_options=dict(spec.backend_options),
        max_vcpus=spec.max_vcpus,
        max_memory_bytes=spec.max_memory_bytes,
        cpu=spec.cpu,
        memory=spec.memory,
        numa=spec.numa,
        secure_boot=spec.secure_boot,
        tpm=spec.tpm,
        rng=spec.rng is not False,
        watchdog=spec.watchdog,
        filesystems=spec.filesystems,
        usb=spec.usb,
        sound=spec.sound,
        host_devices=spec.host_devices,
        autostart=spec.autostart,
        clock=spec.clock,
    )


def choose_accelerator(spec: GuestSpec, facts: HostFacts) -> tuple[Accelerator, str]:
    """Which accelerator the guest gets, and why.

    :raises InvalidArgumentError: FIELD_UNSUPPORTED, the asked one does not work on this host.
    """
    found = {entry.accelerator.upper(): entry for entry in facts.accelerators}
    wanted = spec.accelerator or Accelerator.AUTO
    if wanted is Accelerator.AUTO:
        name = facts.default_accelerator.upper()
        chosen = Accelerator(name) if name in Accelerator.__members__ else Accelerator.TCG
        kvm = found.get(Accelerator.KVM.value)
        why = found[chosen.value].reason if chosen.value in found else "the host's only way"
        if chosen is Accelerator.TCG and kvm is not None and not kvm.usable:
            why = f"KVM does not work here: {kvm.reason}"
        return chosen, why
    entry = found.get(wanted.value)
    if entry is not None and entry.usable:
        return wanted, "as asked"
    reason = entry.reason if entry is not None else f"the host has no accelerator {wanted.value}"
    usable = tuple(name for name, other in found.items() if other.usable)
    raise _unsupported(
        "guest.spec.accelerator", f"{wanted.value} does not work on this host: {reason}", *usable, "AUTO"
    )


def _disk_defaults(disk: DiskSpec, host: GuestDefaults) -> DiskSpec:
    device = disk.device or DiskDevice.DISK
    bus = disk.bus or (DiskBus(host.cdrom_bus) if device is DiskDevice.CDROM else DiskBus.VIRTIO)
    return replace(disk, device=device, bus=bus, read_only=disk.read_only or device is DiskDevice.CDROM)


async def _plan_disk(
    link: HostLink, disk: DiskSpec, index: int, stem: str, images: ImageCatalogue
) -> PlannedVolume | None:
    field = f"guest.spec.disks[{index}]"
    if disk.blank is not None:
        await _check_pool(link, disk.blank.pool)
        return PlannedVolume(
            disk.name,
            disk.blank.pool,
            f"{stem}.{disk.blank.format.value.lower()}",
            disk.blank.format,
            disk.blank.capacity_bytes,
        )
    if disk.image is not None:
        source = disk.image
        await _check_pool(link, source.pool)
        image = await images.get(source.image.removeprefix("images/"))
        remote = not is_local(link.config)
        if remote and link.facets.volume_transfer is None:
            raise _unsupported(f"{field}.image", "the host takes no files of the daemon's machine", "volume")
        if source.capacity_bytes and image.capacity_bytes and source.capacity_bytes < image.capacity_bytes:
            raise InvalidArgumentError(
                FIELD_INVALID,
                f"{field}.image.capacity_bytes: the image has {image.capacity_bytes} bytes and cannot shrink",
                violations=(
                    FieldViolation(
                        f"{field}.image.capacity_bytes", "is less than the image's", (str(image.capacity_bytes),)
                    ),
                ),
            )
        overlay = not source.copy
        if overlay and source.format is not DiskFormat.QCOW2:
            raise _unsupported(f"{field}.image.format", "an overlay must be QCOW2; set copy for others", "QCOW2")
        return PlannedVolume(
            disk.name,
            source.pool,
            f"{stem}.{source.format.value.lower()}",
            source.format,
            source.capacity_bytes or image.capacity_bytes,
            source_path=await images.path(source.image.removeprefix("images/")),
            source_format=DiskFormat(image.format.upper()),
            overlay=overlay,
            send=remote,
        )
    if disk.volume is not None:
        await volume_of(link, disk.volume)
    return None


def planned_seed(spec: GuestSpec, uid: UUID) -> PlannedVolume:
    """The volume of the cloud-init seed: beside the guest's first disk.  Chosen by the specification alone."""
    pools = [source.pool for disk in spec.disks if (source := disk.blank or disk.image) is not None]
    return PlannedVolume(DISK_NAME, pools[0] if pools else "", seed_name(uid), DiskFormat.RAW, seed=True)


async def _plan_seed(link: HostLink, spec: GuestSpec, uid: UUID) -> PlannedVolume | None:
    if spec.cloud_init is None:
        return None
    field = "guest.spec.cloud_init"
    try:
        for capability in (cap.CLOUD_INIT, cap.VOLUMES):
            cap.require(link.capabilities, capability)
    except UnsupportedError as error:
        raise _unsupported(field, error.record.metadata["why"]) from None
    for index, disk in enumerate(spec.disks):
        if disk.name == DISK_NAME:
            raise InvalidArgumentError(
                FIELD_INVALID,
                f"guest.spec.disks[{index}].name: {DISK_NAME} is the name of the seed that virtd makes",
                violations=(FieldViolation(f"guest.spec.disks[{index}].name", f"{DISK_NAME} is taken by the seed"),),
            )
    seed = planned_seed(spec, uid)
    await _check_pool(link, seed.pool)
    return seed


async def _seed_disk(link: HostLink, seed: PlannedVolume) -> ResolvedDisk:
    return ResolvedDisk(
        name=DISK_NAME,
        path=await planned_path(link, seed),
        format=DiskFormat.RAW,
        bus=DiskBus(link.host.facts.guest_defaults.cdrom_bus),
        device=DiskDevice.CDROM,
        read_only=True,
    )


async def volume_of(link: HostLink, name: str) -> ResolvedVolume:
    """An existing volume by its resource name.

    :raises NotFoundError: POOL_NOT_FOUND or VOLUME_NOT_FOUND.
    """
    from virtd.errors import VOLUME_NOT_FOUND

    ids = parse(name, "hosts/{host}/pools/{pool}/volumes/{volume}")
    storage = link.facets.storage
    assert storage is not None  # the capability was required before
    for volume in await link.call(storage.list_volumes(ids["pool"])):
        if volume.name == ids["volume"]:
            return ResolvedVolume(volume.path, DiskFormat(volume.format.upper()))
    raise NotFoundError(VOLUME_NOT_FOUND, f"there is no volume {name}", resource=name)


@dataclass(frozen=True, slots=True)
class ResolvedVolume:
    """Where a volume lies and what it is."""

    path: str
    format: DiskFormat


async def _resolved_disk(link: HostLink, disk: DiskSpec, planned: PlannedVolume | None) -> ResolvedDisk:
    if planned is not None:
        path, format_ = await planned_path(link, planned), planned.format
    elif disk.volume is not None:
        volume = await volume_of(link, disk.volume)
        path, format_ = volume.path, volume.format
    elif disk.host_file is not None:
        path, format_ = disk.host_file.path, disk.host_file.format
    else:
        path, format_ = "", DiskFormat.RAW  # a CD-ROM drive without a medium: check_spec has seen to it
    return ResolvedDisk(
        name=disk.name,
        path=path,
        format=format_,
        bus=disk.bus or DiskBus.VIRTIO,
        device=disk.device or DiskDevice.DISK,
        read_only=disk.read_only,
        boot_order=disk.boot_order,
        cache=disk.cache,
        io_tune=disk.io_tune,
        discard=disk.discard,
        serial=disk.serial,
    )


async def planned_path(link: HostLink, volume: PlannedVolume) -> str:
    """Where a planned volume will lie.  No side effect, also when the default pool does not exist yet."""
    storage = link.facets.storage
    assert storage is not None
    if volume.pool:
        return await link.call(storage.volume_path(volume.pool, volume.name))
    try:
        return await link.call(storage.volume_path(DEFAULT_POOL, volume.name))
    except NotFoundError:
        return f"{link.config.directory}/pool/{volume.name}"


async def _check_pool(link: HostLink, pool: str) -> None:
    if not pool:
        return
    storage = link.facets.storage
    assert storage is not None
    pools = [entry.name for entry in await link.call(storage.list_pools())]
    if pool not in pools:
        raise NotFoundError(
            POOL_NOT_FOUND,
            f"host {link.id} has no pool {pool}; pools: {', '.join(pools) or 'none'}",
            resource=f"hosts/{link.id}/pools/{pool}",
        )


async def _check_networks(link: HostLink, spec: GuestSpec) -> None:
    from virtd.errors import NETWORK_NOT_FOUND

    wanted = {i.network for i in spec.interfaces if i.kind is InterfaceKind.NETWORK}
    networks = link.facets.networks
    if not wanted or networks is None:
        return
    known = {network.name: network for network in await link.call(networks.list_networks())}
    for index, interface in enumerate(spec.interfaces):
        if interface.kind is not InterfaceKind.NETWORK:
            continue
        field = f"guest.spec.interfaces[{index}].network"
        network = known.get(interface.network)
        if network is None:
            raise NotFoundError(
                NETWORK_NOT_FOUND,
                f"{field}: host {link.id} has no network {interface.network}; networks: {', '.join(known) or 'none'}",
                resource=f"hosts/{link.id}/networks/{interface.network}",
            )
        if network.active is False:
            raise _unsupported(field, f"network {interface.network} is not active on this host")


def _unsupported(field: str, why: str, *alternatives: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        FIELD_UNSUPPORTED, f"{field}: {why}", violations=(FieldViolation(field, why, alternatives),)
    )
