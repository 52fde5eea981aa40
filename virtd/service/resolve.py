"""From a spec to a guest in which nothing is left to choose.

Everything that has to be invented (UUID, MAC addresses, volume names) is invented here, before the
journal row is written; carrying it out twice then gives the same guest.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace
from pathlib import Path
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
from virtd.model.host import HostFacts
from virtd.model.names import parse, shown
from virtd.service.core import is_local
from virtd.service.images import ImageCatalogue
from virtd.service.validate import check_allowed_path, check_spec

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


@dataclass(frozen=True, slots=True)
class Resolution:
    """A guest with all choices made; disks still lack their paths."""

    spec: GuestSpec
    volumes: tuple[PlannedVolume, ...]
    accelerator: Accelerator
    accelerator_reason: str


def with_defaults(spec: GuestSpec) -> GuestSpec:
    """The spec with every default written out, MAC addresses included."""
    return replace(
        spec,
        vcpus=spec.vcpus or 1,
        accelerator=spec.accelerator or Accelerator.AUTO,
        firmware=spec.firmware or Firmware.BIOS,
        serial_console=True if spec.serial_console is None else spec.serial_console,
        guest_agent=True if spec.guest_agent is None else spec.guest_agent,
        graphics=spec.graphics or GraphicsSpec(vnc=True),
        run_strategy=spec.run_strategy or RunStrategy.MANUAL,
        disks=tuple(_disk_defaults(disk) for disk in spec.disks),
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
    spec = with_defaults(spec)
    spec = _check_paths(spec, allowed, local=is_local(link.config))
    _check_host(link, spec)
    if spec.machine and facts.machines and spec.machine not in facts.machines:
        why = f"the host has no machine type {shown(spec.machine)}"
        raise _unsupported("guest.spec.machine", why, *facts.machines)
    accelerator, reason = choose_accelerator(spec, facts)
    volumes: list[PlannedVolume] = []
    for index, disk in enumerate(spec.disks):
        planned = await _plan_disk(link, disk, index, f"{guest_id}-{disk.name}-{uid.hex[:8]}", images)
        if planned is not None:
            volumes.append(planned)
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
    if disks and all(disk.boot_order is None for disk in disks):
        disks[0] = replace(disks[0], boot_order=1)
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
            ResolvedInterface(i.name, i.kind, i.mac, network=i.network, model=i.model) for i in spec.interfaces
        ),
        serial_console=spec.serial_console is not False,
        guest_agent=spec.guest_agent is not False,
        graphics=spec.graphics,
        backend_options=dict(spec.backend_options),
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


def _disk_defaults(disk: DiskSpec) -> DiskSpec:
    device = disk.device or DiskDevice.DISK
    bus = disk.bus or (DiskBus.SCSI if device is DiskDevice.CDROM else DiskBus.VIRTIO)
    return replace(disk, device=device, bus=bus, read_only=disk.read_only or device is DiskDevice.CDROM)


def _check_paths(spec: GuestSpec, allowed: tuple[str, ...], *, local: bool) -> GuestSpec:
    boot = spec.direct_kernel_boot
    if boot is not None:
        field = "guest.spec.direct_kernel_boot"
        boot = replace(
            boot,
            kernel_path=check_allowed_path(boot.kernel_path, allowed, f"{field}.kernel_path", local=local),
            initrd_path=check_allowed_path(boot.initrd_path, allowed, f"{field}.initrd_path", local=local)
            if boot.initrd_path
            else "",
        )
        if local:
            _check_exists(boot.kernel_path, f"{field}.kernel_path")
            if boot.initrd_path:
                _check_exists(boot.initrd_path, f"{field}.initrd_path")
    disks = []
    for index, disk in enumerate(spec.disks):
        if disk.host_file is not None:
            field = f"guest.spec.disks[{index}].host_file.path"
            path = check_allowed_path(disk.host_file.path, allowed, field, local=local)
            if local:
                _check_exists(path, field)
            disk = replace(disk, host_file=replace(disk.host_file, path=path))  # noqa: PLW2901 - its new version
        disks.append(disk)
    return replace(spec, direct_kernel_boot=boot, disks=tuple(disks))


def _check_exists(path: str, field: str) -> None:
    if not Path(path).is_file():
        raise InvalidArgumentError(
            FIELD_INVALID, f"{field}: there is no file {path}", violations=(FieldViolation(field, "no such file"),)
        )


def _check_host(link: HostLink, spec: GuestSpec) -> None:
    """What the host's capabilities and the backend's options say of the spec."""
    needs = [
        (spec.direct_kernel_boot is not None, cap.DIRECT_KERNEL_BOOT, "guest.spec.direct_kernel_boot", ()),
        (spec.firmware is Firmware.UEFI, cap.UEFI, "guest.spec.firmware", ("BIOS",)),
        (
            any(disk.blank is not None or disk.image is not None or disk.volume is not None for disk in spec.disks),
            cap.VOLUMES,
            "guest.spec.disks",
            ("host_file",),
        ),
    ]
    for needed, capability, field, alternatives in needs:
        if not needed:
            continue
        try:
            cap.require(link.capabilities, capability)
        except UnsupportedError as error:
            raise _unsupported(field, error.record.metadata["why"], *alternatives) from None
    if spec.run_strategy is not RunStrategy.MANUAL:
        raise _unsupported("guest.spec.run_strategy", "virtd does not start guests by itself yet", "MANUAL")
    options = {option.name: option for option in link.backend.descriptor.options}
    for key, value in spec.backend_options.items():
        field = f"guest.spec.backend_options[{key}]"
        if key not in options:
            raise _unsupported(field, f"the backend {link.backend.descriptor.id} has no such option", *options)
        if options[key].values and value not in options[key].values:
            raise _unsupported(field, f"{value!r} is not one of its values", *options[key].values)


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
        if not is_local(link.config):
            raise _unsupported(
                f"{field}.image", "images can be used on hosts of the daemon's own machine only", "volume"
            )
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
        )
    if disk.volume is not None:
        await volume_of(link, disk.volume)
    return None


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
    else:
        assert disk.host_file is not None  # check_spec has seen to it
        path, format_ = disk.host_file.path, disk.host_file.format
    return ResolvedDisk(
        name=disk.name,
        path=path,
        format=format_,
        bus=disk.bus or DiskBus.VIRTIO,
        device=disk.device or DiskDevice.DISK,
        read_only=disk.read_only,
        boot_order=disk.boot_order,
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
