"""A guest that exists, and the same guest as it shall be, both with every choice made.

What a change is not about is not looked at again: a disk keeps the file that it has, also when the image
that it was made of is gone, and a field that an adopted guest has, and virtd would not accept today,
does not stand in the way of another one.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from virtd.backend.api import Fidelity, ResolvedGuest
from virtd.errors import (
    FIELD_INVALID,
    FIELD_UNSUPPORTED,
    VOLUME_IN_USE,
    FailedPreconditionError,
    FieldViolation,
    InvalidArgumentError,
    invalid_field,
)
from virtd.inventory import HostLink, Inventory
from virtd.model.changes import NAMED_LISTS, entry_of
from virtd.model.guest import (
    Accelerator,
    DiskFormat,
    DiskSpec,
    DiskStatus,
    Guest,
    GuestSpec,
    HostFileSource,
    RunStrategy,
)
from virtd.model.host import GuestDefaults
from virtd.model.names import parse_guest, shown
from virtd.service.catalogue import ImageCatalogue
from virtd.service.changes import by_name
from virtd.service.resolve import (
    PlannedVolume,
    Resolution,
    _check_networks,
    _plan_disk,
    choose_accelerator,
    resolved_guest,
    with_defaults,
)
from virtd.service.resolve_host import check_host
from virtd.service.validate import check_spec


@dataclass(frozen=True, slots=True)
class Pair:
    """``spec`` is the wanted one with defaults; ``volumes`` are to be made; ``sizes`` are paths of disks that grow."""

    spec: GuestSpec
    current: ResolvedGuest
    wanted: ResolvedGuest
    volumes: tuple[PlannedVolume, ...]
    sizes: Mapping[str, int]
    accelerator: Accelerator
    accelerator_reason: str


async def resolve_pair(
    link: HostLink,
    guest: Guest,
    wanted: GuestSpec,
    disks: Sequence[DiskStatus],
    images: ImageCatalogue,
    allowed: tuple[str, ...],
) -> Pair:
    """Check what changes, and make the choices that it needs.  No side effect.

    :param disks: those that the guest is started with next.
    :raises InvalidArgumentError: FIELD_INVALID, FIELD_UNSUPPORTED or PATH_NOT_ALLOWED.
    :raises NotFoundError: IMAGE_NOT_FOUND, POOL_NOT_FOUND, VOLUME_NOT_FOUND or NETWORK_NOT_FOUND.
    """
    name, spec = parse_guest(guest.name), settled(guest.spec, wanted, link.host.facts.guest_defaults)
    _check_new_faults(guest.spec, spec, link.id)
    probe = _part_that_changes(guest.spec, spec)
    facts = await link.facts()
    try:
        probe = check_host(link, probe, allowed)
        _check_machine(probe, tuple(facts.machines))
        volumes = []
        for index, disk in enumerate(probe.disks):
            # Not the name that a disk of this name had before: its volume may still be there.
            stem = f"{name.guest}-{disk.name}-{guest.uid.hex[:8]}-{secrets.token_hex(2)}"
            planned = await _plan_disk(link, disk, index, stem, images)
            if planned is not None:
                volumes.append(planned)
        await _check_networks(link, probe)
    except InvalidArgumentError as error:
        raise by_name(error, probe) from error
    spec = _with_checked(spec, probe)
    was, reason = guest.status.accelerator or Accelerator.TCG, guest.status.accelerator_reason
    becomes = was
    if spec.accelerator is not guest.spec.accelerator:
        becomes, reason = choose_accelerator(spec, facts)
    files = {disk.name: disk for disk in disks}
    current = await resolved_guest(
        link, name.guest, guest.uid, Resolution(_pinned(guest.spec, guest.spec, files, ()), (), was, "")
    )
    target = await resolved_guest(
        link,
        name.guest,
        guest.uid,
        Resolution(_pinned(spec, guest.spec, files, [v.disk for v in volumes]), tuple(volumes), becomes, reason),
    )
    current, target = _with_files(current, files, ()), _with_files(target, files, [d.name for d in probe.disks])
    _check_rejected(link, spec, current, target)
    return Pair(spec, current, target, tuple(volumes), _sizes(guest.spec, spec, files), becomes, reason)


def settled(current: GuestSpec, wanted: GuestSpec, host: GuestDefaults) -> GuestSpec:
    """``wanted`` with defaults written out where it differs from ``current``, and only there."""
    full = with_defaults(wanted, host)
    changed: dict[str, Any] = {}
    for entry in fields(GuestSpec):
        name = entry.name
        if getattr(wanted, name) == getattr(current, name):
            continue
        if name in NAMED_LISTS:
            pairs = zip(getattr(wanted, name), getattr(full, name), strict=True)
            changed[name] = tuple(
                said if said == entry_of(current, name, said.name) else complete for said, complete in pairs
            )
        else:
            changed[name] = getattr(full, name)
    return replace(wanted, **changed)


def same_source(first: DiskSpec, second: DiskSpec) -> bool:
    """Whether two versions of a disk hold the same data: the same source, whatever its size."""
    return _bare(first) == _bare(second)


def _bare(disk: DiskSpec) -> tuple[Any, ...]:
    blank = None if disk.blank is None else replace(disk.blank, capacity_bytes=0)
    image = None if disk.image is None else replace(disk.image, capacity_bytes=None)
    return (blank, image, disk.volume, disk.host_file)


def _check_new_faults(current: GuestSpec, wanted: GuestSpec, host: str) -> None:
    """Only what is wrong with the wanted spec and was not wrong before."""
    before = {(v.field, v.description) for v in _faults(current, host)}
    found = [v for v in _faults(wanted, host) if (v.field, v.description) not in before]
    if found:
        raise InvalidArgumentError(
            FIELD_INVALID, "; ".join(f"{v.field}: {v.description}" for v in found[:5]), violations=tuple(found)
        )


def _faults(spec: GuestSpec, host: str) -> tuple[FieldViolation, ...]:
    try:
        check_spec(spec, host)
    except InvalidArgumentError as error:
        return by_name(error, spec).record.violations
    return ()


def _part_that_changes(current: GuestSpec, wanted: GuestSpec) -> GuestSpec:
    """The wanted spec without what is as it was, so that only what changes is checked against the host."""
    kept: dict[str, Any] = {}
    defaults = GuestSpec()
    for entry in fields(GuestSpec):
        value = getattr(wanted, entry.name)
        if entry.name == "disks":
            kept["disks"] = tuple(disk for disk in value if _is_new_data(current, disk))
        elif entry.name in NAMED_LISTS:
            kept[entry.name] = tuple(item for item in value if item != entry_of(current, entry.name, item.name))
        elif value == getattr(current, entry.name):
            kept[entry.name] = getattr(defaults, entry.name)
    # First boots are over; the seed of the first one stays as it is.
    if wanted.run_strategy is current.run_strategy:
        kept["run_strategy"] = RunStrategy.MANUAL
    return replace(wanted, **{**kept, "cloud_init": None})


def _check_machine(probe: GuestSpec, known: tuple[str, ...]) -> None:
    if probe.machine and known and probe.machine not in known:
        why = f"the host has no machine type {shown(probe.machine)}"
        raise InvalidArgumentError(
            FIELD_UNSUPPORTED,
            f"guest.spec.machine: {why}",
            violations=(FieldViolation("guest.spec.machine", why, known),),
        )


def _is_new_data(current: GuestSpec, disk: DiskSpec) -> bool:
    old = entry_of(current, "disks", disk.name)
    return old is None or not same_source(old, disk)


def _with_checked(spec: GuestSpec, probe: GuestSpec) -> GuestSpec:
    """The spec with the paths as the check has resolved them."""
    changed: dict[str, Any] = {
        name: tuple(entry_of(probe, name, item.name) or item for item in getattr(spec, name)) for name in NAMED_LISTS
    }
    if probe.direct_kernel_boot is not None:
        changed["direct_kernel_boot"] = probe.direct_kernel_boot
    return replace(spec, **changed)


def _pinned(spec: GuestSpec, current: GuestSpec, files: Mapping[str, DiskStatus], made: Sequence[str]) -> GuestSpec:
    """Disks that exist as the files that they are; those that the hypervisor no longer has are left out."""
    disks = []
    for disk in spec.disks:
        old = entry_of(current, "disks", disk.name)
        if disk.name in made or old is None or not same_source(old, disk):
            disks.append(disk)
        elif disk.name in files:
            file = files[disk.name]
            source = HostFileSource(file.path, _format(file)) if file.path else None
            disks.append(replace(disk, blank=None, image=None, volume=None, host_file=source))
    return replace(spec, disks=tuple(disks))


def _format(file: DiskStatus) -> DiskFormat:
    name = file.format.upper()
    return DiskFormat(name) if name in DiskFormat.__members__ else DiskFormat.RAW


def _with_files(guest: ResolvedGuest, files: Mapping[str, DiskStatus], new: Sequence[str]) -> ResolvedGuest:
    """Files of what is not in the spec (the seed of the first boot) as the hypervisor has them."""
    disks = tuple(
        disk if disk.name in new or disk.name not in files else replace(disk, path=files[disk.name].path)
        for disk in guest.disks
        if disk.name in new or disk.name in files
    )
    return replace(guest, disks=disks)


def _sizes(current: GuestSpec, wanted: GuestSpec, files: Mapping[str, DiskStatus]) -> Mapping[str, int]:
    """New sizes by path.

    :raises InvalidArgumentError: FIELD_INVALID, a disk would shrink.
    """
    found = {}
    for disk in wanted.disks:
        old, file = entry_of(current, "disks", disk.name), files.get(disk.name)
        source = disk.blank or disk.image
        if old is None or file is None or source is None or not same_source(old, disk) or old == disk:
            continue
        before = old.blank or old.image
        size = source.capacity_bytes
        if size is None or before is None or size == before.capacity_bytes:
            continue
        least = file.capacity_bytes or before.capacity_bytes or 0
        if size < least:
            arm = "blank" if disk.blank is not None else "image"
            where = f"guest.spec.disks[{disk.name}].{arm}.capacity_bytes"
            raise invalid_field(where, f"the disk has {least} bytes and cannot shrink to {size}", str(least))
        found[file.path] = size
    return found


def _check_rejected(link: HostLink, spec: GuestSpec, current: ResolvedGuest, wanted: ResolvedGuest) -> None:
    before = {(v.field, v.reason) for v in link.session.lower(current).verdicts if v.fidelity is Fidelity.REJECTED}
    found = [
        v
        for v in link.session.lower(wanted).verdicts
        if v.fidelity is Fidelity.REJECTED and (v.field, v.reason) not in before
    ]
    if found:
        error = InvalidArgumentError(
            FIELD_UNSUPPORTED,
            "; ".join(f"guest.{v.field}: {v.reason}" for v in found),
            resource=f"hosts/{link.id}",
            violations=tuple(FieldViolation(f"guest.{v.field}", v.reason, v.alternatives) for v in found),
        )
        raise by_name(error, spec)


def check_disks_free(inventory: Inventory, host: str, current: ResolvedGuest, wanted: ResolvedGuest) -> None:
    """Two guests that write to one disk destroy it; so does one guest that has it twice.

    :raises FailedPreconditionError: VOLUME_IN_USE.
    """
    held = {disk.path for disk in current.disks}
    writers = {
        disk.path: view.guest.name
        for view in inventory.guests(host)
        for disk in view.guest.status.disks
        if disk.path and not disk.read_only
    }
    paths = [disk.path for disk in wanted.disks if disk.path and not disk.read_only]
    for disk in wanted.disks:
        if not disk.path or disk.read_only:
            continue
        twice = paths.count(disk.path) > 1
        if twice or (disk.path not in held and disk.path in writers):
            user = writers.get(disk.path, "this guest")
            where = f"guest.spec.disks[{disk.name}]"
            raise FailedPreconditionError(
                VOLUME_IN_USE,
                f"{where}: {disk.path} is a disk of {user}",
                resource=user if disk.path in writers else "",
                metadata={"field": where, "used_by": user},
            )
