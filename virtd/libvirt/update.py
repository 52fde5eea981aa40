"""Changing a guest that exists: what a change does, in the running guest and for its next start."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final
from uuid import UUID

import libvirt

from virtd.backend import capabilities as ids
from virtd.backend.api import CallContext, FieldEffect, NativePlan, ResolvedGuest, UpdateEffect
from virtd.errors import (
    FIELD_UNSUPPORTED,
    INVALID_STATE,
    FailedPreconditionError,
    InvalidArgumentError,
    unsupported,
)
from virtd.libvirt.connections import LaneName
from virtd.libvirt.effects import Facts, UpdatePolicy, effects_of
from virtd.libvirt.errors import code_of, native_of
from virtd.libvirt.guests import Guests, native_state
from virtd.libvirt.hotplug import Hotplug, capacity_of, live_xml
from virtd.libvirt.states import ACTIVE
from virtd.libvirt.xml.build import Element, attribute, parse, render
from virtd.libvirt.xml.disk import Disk
from virtd.libvirt.xml.merge import merge, names_of_disks, names_of_interfaces
from virtd.model.changes import Part, parse_path
from virtd.model.devices import LinkState
from virtd.model.guest import DiskStatus, GuestState

_CONFIG_XML: Final = libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE
# What libvirt says of a configuration that it will not have.
_REFUSED: Final = frozenset(
    {libvirt.VIR_ERR_XML_ERROR, libvirt.VIR_ERR_CONFIG_UNSUPPORTED, libvirt.VIR_ERR_INVALID_ARG}
)
_BY_FIELD: Final = {
    "vcpus": ids.UPDATE_VCPUS,
    "memory_bytes": ids.UPDATE_MEMORY,
    "disks": ids.UPDATE_DISKS,
    "interfaces": ids.UPDATE_INTERFACES,
}

Lower = Callable[[ResolvedGuest], NativePlan]


class Update:
    """Implements :class:`virtd.backend.api.UpdateFacet`.

    :param lower: the designer.
    :param missing: capabilities that this host has not, and why.
    :param policy: what a change of each field does.
    """

    def __init__(
        self, guests: Guests, lower: Lower, missing: Callable[[], Mapping[str, str]], policy: UpdatePolicy
    ) -> None:
        self._guests: Final = guests
        self._lower: Final = lower
        self._missing: Final = missing
        self._policy: Final = policy
        self._hotplug: Final = Hotplug(guests)

    async def configured_disks(self, uuid: UUID) -> Sequence[DiskStatus]:
        """Of the inactive domain."""

        def run(domain: Any) -> Sequence[DiskStatus]:
            config = parse(domain.XMLDesc(_CONFIG_XML))
            return [_status(domain, name, disk) for name, disk in names_of_disks(config).items()]

        return await self._guests.on_domain(uuid, "virDomainGetXMLDesc", run)

    async def plan_update(
        self, current: ResolvedGuest, wanted: ResolvedGuest, fields: Sequence[str]
    ) -> Sequence[FieldEffect]:
        """One native call, whatever the number of fields."""
        facts = await self._facts(current)
        return effects_of(self._policy, facts, current, wanted, fields)

    async def apply_live(
        self,
        current: ResolvedGuest,
        wanted: ResolvedGuest,
        fields: Sequence[str],
        context: CallContext,
        *,
        force: bool = False,
    ) -> None:
        """One field after the other, in the order of :func:`_order`."""
        facts = await self._facts(current)
        if facts.live is None:
            raise FailedPreconditionError(INVALID_STATE, "the guest does not run", allowed_actions=("start",))
        for found in effects_of(self._policy, facts, current, wanted, fields):
            # What is so already is looked at anew by each step; what cannot be is refused before the first.
            if found.effect is not UpdateEffect.LIVE and not self._is_so(facts, wanted, found.field):
                part = parse_path(found.field)[0].name
                raise unsupported(_capability(found.field, current, wanted, part), found.reason)
        merged = merge(facts.config, self._tree(current), self._tree(wanted), facts.live)
        for number, path in enumerate(sorted(fields, key=_order(wanted))):
            context.checkpoint()
            await self._apply(wanted, path, merged, context, force=force)
            context.progress((number + 1) / len(fields))

    def _is_so(self, facts: Facts, wanted: ResolvedGuest, path: str) -> bool:
        """Whether an entry is plugged in, or is not, as it shall be already: then nothing is left to be done."""
        part, *rest = parse_path(path)
        if rest or part.name not in ("disks", "interfaces") or facts.live is None:
            return False
        find = names_of_disks if part.name == "disks" else names_of_interfaces
        wished = any(entry.name == part.key for entry in getattr(wanted, part.name))
        return wished is (part.key in find(facts.live))

    async def _apply(
        self, wanted: ResolvedGuest, path: str, merged: Element, context: CallContext, *, force: bool
    ) -> None:
        part, *rest = parse_path(path)
        uuid, hotplug = wanted.uuid, self._hotplug
        if part.name == "vcpus":
            await hotplug.set_vcpus(uuid, wanted.vcpus, context)
        elif part.name == "memory_bytes":
            await hotplug.set_memory(uuid, wanted.memory_bytes, context)
        elif part.name == "disks":
            await self._apply_disk(wanted, part, rest, merged, context, force=force)
        elif part.name == "interfaces":
            interface = next((entry for entry in wanted.interfaces if entry.name == part.key), None)
            if rest and interface is not None:
                await hotplug.set_link(uuid, part.key, up=interface.link_state is not LinkState.DOWN)
            elif interface is None:
                await hotplug.detach(uuid, "interface", part.key, context)
            else:
                device = names_of_interfaces(merged)[part.key]
                await hotplug.attach(uuid, "interface", part.key, device, [])

    async def _apply_disk(
        self,
        wanted: ResolvedGuest,
        part: Part,
        rest: Sequence[Part],
        merged: Element,
        context: CallContext,
        *,
        force: bool,
    ) -> None:
        disk = next((entry for entry in wanted.disks if entry.name == part.key), None)
        if disk is None:
            await self._hotplug.detach(wanted.uuid, "disk", part.key, context)
            return
        device = names_of_disks(merged)[part.key]
        if not rest:
            await self._hotplug.attach(wanted.uuid, "disk", part.key, device, _controllers_for(merged, device))
        elif rest[0].name == "io_tune":
            await self._hotplug.set_io_tune(wanted.uuid, part.key, disk.io_tune)
        elif rest[-1].name != "capacity_bytes":  # sizes have a step of their own
            await self._hotplug.change_medium(wanted.uuid, part.key, device, force=force)

    async def apply_config(self, current: ResolvedGuest, wanted: ResolvedGuest, context: CallContext) -> None:
        """Merge and define, in one go on the host's own worker."""
        base, target = self._tree(current), self._tree(wanted)
        context.checkpoint()

        def run(domain: Any) -> None:
            native = parse(domain.XMLDesc(_CONFIG_XML))
            xml = self._merged(domain, native, base, target)
            if xml == render(native):
                return
            try:
                domain.connect().defineXML(xml)
            except libvirt.libvirtError as error:
                if code_of(error) not in _REFUSED:
                    raise
                raise InvalidArgumentError(
                    FIELD_UNSUPPORTED,
                    f"libvirt refuses the changed configuration: {error.get_error_message()}",
                    native=native_of(error, "virDomainDefineXML"),
                ) from error

        await self._guests.on_domain(wanted.uuid, "virDomainDefineXML", run, lane=LaneName.CHANGE, unlimited=True)

    async def native_config(self, current: ResolvedGuest, wanted: ResolvedGuest) -> str:
        """The merged domain."""
        base, target = self._tree(current), self._tree(wanted)

        def run(domain: Any) -> str:
            return self._merged(domain, parse(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)), base, target)

        return await self._guests.on_domain(wanted.uuid, "virDomainGetXMLDesc", run)

    async def resize_disk(self, uuid: UUID, path: str, capacity_bytes: int, context: CallContext) -> None:
        """Through the hypervisor or the pool."""
        why = self._missing().get(ids.UPDATE_RESIZE)
        if why is not None:
            raise unsupported(ids.UPDATE_RESIZE, why)
        context.checkpoint()
        await self._hotplug.resize(uuid, path, capacity_bytes)

    @staticmethod
    def _merged(domain: Any, native: Element, base: Element, target: Element) -> str:
        live = live_xml(domain) if domain.state()[0] in ACTIVE else None
        merged = merge(native, base, target, live)
        if live is not None:
            _take_addresses(merged, native, live)
        return render(merged)

    def _tree(self, guest: ResolvedGuest) -> Element:
        return parse(self._lower(guest).native)

    async def _facts(self, guest: ResolvedGuest) -> Facts:
        paths = [disk.path for disk in guest.disks if disk.path]

        def run(domain: Any) -> Facts:
            state = native_state(domain)
            active = domain.state()[0] in ACTIVE
            if not domain.isPersistent():
                raise FailedPreconditionError(
                    INVALID_STATE,
                    "the guest has no persistent configuration: it is gone when it stops",
                )
            sizes = {path: capacity_of(domain, path) for path in paths}
            return Facts(
                config=parse(domain.XMLDesc(_CONFIG_XML)),
                live=live_xml(domain) if active else None,
                suspended=state.state is GuestState.SUSPENDED,
                capacities={path: size for path, size in sizes.items() if size is not None},
                missing=self._missing(),
            )

        return await self._guests.on_domain(guest.uuid, "virDomainGetXMLDesc", run)


def _status(domain: Any, name: str, disk: Element) -> DiskStatus:
    known = Disk.parse(disk)
    return DiskStatus(
        name=name,
        path=known.path,
        target=known.target,
        format=known.format,
        bus=known.bus,
        read_only=known.read_only,
        capacity_bytes=capacity_of(domain, known.path) if known.path else None,
    )


def _order(wanted: ResolvedGuest) -> Callable[[str], int]:
    """What takes room away comes before what needs room."""

    def rank(path: str) -> int:
        part, *rest = parse_path(path)
        if part.name not in ("disks", "interfaces"):
            return 2
        return 0 if rest or all(entry.name != part.key for entry in getattr(wanted, part.name)) else 1

    return rank


def _capability(path: str, current: ResolvedGuest, wanted: ResolvedGuest, part: str) -> str:
    if part == "vcpus" and wanted.vcpus < current.vcpus:
        return ids.UPDATE_VCPUS_UNPLUG
    if path.endswith(".io_tune"):
        return ids.UPDATE_IO_TUNE
    if part == "disks" and "." in path.removeprefix("spec."):
        return ids.UPDATE_MEDIUM
    return _BY_FIELD.get(part, ids.UPDATE)


def _controllers_for(merged: Element, device: Element) -> list[Element]:
    """The controller that a disk hangs on, where it is not the machine's own."""
    if attribute(device, "target", "bus") != "scsi":
        return []
    found = [entry for entry in merged.findall("devices/controller") if entry.get("type") == "scsi"][:1]
    made = [copy.deepcopy(entry) for entry in found]
    for entry in made:
        for address in entry.findall("address"):
            entry.remove(address)
    return made


def _take_addresses(merged: Element, native: Element, live: Element) -> None:
    """A device that was plugged in keeps its place at the next start, if that is free there."""
    used = {_place(entry) for entry in merged.iterfind("devices/*/address")}
    for find in (names_of_disks, names_of_interfaces):
        known, running = find(native), find(live)
        for name, device in find(merged).items():
            place = None if name not in running or name in known else running[name].find("address")
            if place is None or place.get("type") != "pci" or _place(place) in used:
                continue
            if device.find("address") is None:
                device.append(copy.deepcopy(place))
                used.add(_place(place))


def _place(address: Element) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((str(key), str(value)) for key, value in address.attrib.items() if key != "multifunction"))
