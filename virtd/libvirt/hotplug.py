"""Changes of a running guest: devices in and out, media, links, processors, memory, sizes, limits.

Each is idempotent: what is so already is left.  None of them changes what the guest is started with
next.  libvirt is believed when the device is in the running domain's description, or is not: events
about it may be lost, the description is the truth.
"""

from __future__ import annotations

import asyncio
import copy
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar
from uuid import UUID

import libvirt
from lxml import etree

from virtd.backend.api import CallContext
from virtd.errors import DEVICE_BUSY, FailedPreconditionError, NativeError
from virtd.libvirt.connections import LaneName
from virtd.libvirt.errors import code_of, native_of
from virtd.libvirt.guests import Guests, is_active, require_active
from virtd.libvirt.storage_objects import look_again
from virtd.libvirt.xml.build import Element, attribute, element, parse, render
from virtd.libvirt.xml.merge import names_of_disks, names_of_interfaces, target_of
from virtd.libvirt.xml.metadata import NAMESPACE, Metadata
from virtd.model.devices import IoTune

T = TypeVar("T")

_LIVE: Final = libvirt.VIR_DOMAIN_AFFECT_LIVE
_KIB: Final = 1024
_POLL_S: Final = 0.25
_ASK_AGAIN_S: Final = 5.0
_OBEY_S: Final = 5.0
# Xen counts a few pages of its own as the guest's.
_BALLOON_SLACK_KIB: Final = 1024
RELEASE_S: Final = 30.0
"""How long a guest may take to let go of a device: a system that boots hears the request only later."""
# What libvirt says while an earlier request to unplug the same device is still open, or when it gave up waiting.
_STILL_ASKED: Final = frozenset(
    {
        libvirt.VIR_ERR_OPERATION_FAILED,
        libvirt.VIR_ERR_OPERATION_TIMEOUT,
        libvirt.VIR_ERR_INTERNAL_ERROR,
        libvirt.VIR_ERR_OPERATION_UNSUPPORTED,
    }
)
_GONE: Final = libvirt.VIR_ERR_DEVICE_MISSING
_FINDERS: Final[Mapping[str, Callable[[Element], Mapping[str, Element]]]] = {
    "disk": names_of_disks,
    "interface": names_of_interfaces,
}


def live_xml(domain: Any) -> Element:
    """The running domain."""
    return parse(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_SECURE))


class Hotplug:
    """Live changes of one host's guests.  ``kind`` is ``disk`` or ``interface``, ``name`` the spec's."""

    def __init__(self, guests: Guests) -> None:
        self._guests: Final = guests

    async def attach(self, uuid: UUID, kind: str, name: str, device: Element, controllers: list[Element]) -> None:
        """Plug a device in.

        :param device: as it is in the configuration.
        :param controllers: attached first where the running guest has none of that type and index.
        """

        def run(domain: Any) -> None:
            require_active(domain, f"attach a {kind}")
            live = live_xml(domain)
            if name in _FINDERS[kind](live):
                return
            for controller in controllers:
                if not _has_controller(live, controller):
                    domain.attachDeviceFlags(render(copy.deepcopy(controller)), _LIVE)
            # The name first: a crash in between must not leave a device that nobody knows by its name.
            _name(domain, live, kind, _mark_of(kind, device), name)
            twin = copy.deepcopy(device)
            for tag in ("boot", "address"):  # of the next start; the running machine has its own
                for found in twin.findall(tag):
                    if tag == "address" or not _order_is_free(live, found.get("order") or ""):
                        twin.remove(found)
            try:
                domain.attachDeviceFlags(render(twin), _LIVE)
            except libvirt.libvirtError:
                _name(domain, live, kind, _mark_of(kind, device), "")
                raise

        await self._change(uuid, "virDomainAttachDeviceFlags", run)

    async def detach(self, uuid: UUID, kind: str, name: str, context: CallContext) -> None:
        """Ask the guest to let go of a device, again and again, and wait until it has.

        :raises FailedPreconditionError: DEVICE_BUSY, it does not; it still has the device.
        """
        deadline = time.monotonic() + RELEASE_S
        ask_next, last = 0.0, None
        while True:
            context.checkpoint()
            if time.monotonic() >= ask_next:
                gone, last = await self._ask_to_release(uuid, kind, name)
                ask_next = time.monotonic() + _ASK_AGAIN_S
            else:
                gone = await self._guests.on_domain(uuid, "virDomainGetXMLDesc", lambda d: _is_gone(d, kind, name))
            if gone:
                return
            if time.monotonic() >= deadline:
                raise FailedPreconditionError(
                    DEVICE_BUSY,
                    f"the guest did not let go of the {kind} {name} within {RELEASE_S:g} s, and keeps it",
                    native=last,
                    metadata={"device": name},
                )
            await asyncio.sleep(_POLL_S)

    async def _ask_to_release(self, uuid: UUID, kind: str, name: str) -> tuple[bool, NativeError | None]:
        def run(domain: Any) -> tuple[bool, NativeError | None]:
            if not is_active(domain):
                return True, None
            live = live_xml(domain)
            device = _FINDERS[kind](live).get(name)
            if device is None:
                return True, None
            native = None
            try:
                domain.detachDeviceFlags(render(copy.deepcopy(device)), _LIVE)
            except libvirt.libvirtError as error:
                if code_of(error) not in _STILL_ASKED | {_GONE}:
                    raise
                native = native_of(error, "virDomainDetachDeviceFlags")
            return _is_gone(domain, kind, name), native

        return await self._change(uuid, "virDomainDetachDeviceFlags", run)

    async def change_medium(self, uuid: UUID, name: str, drive: Element, *, force: bool) -> None:
        """Put into a drive what the configuration says, or empty it.

        :raises FailedPreconditionError: DEVICE_BUSY, the guest has locked the tray.
        """

        def run(domain: Any) -> None:
            require_active(domain, "change a medium")
            held = names_of_disks(live_xml(domain)).get(name)
            if held is None or _source(held) == _source(drive):
                return
            _put_in(held, drive)
            try:
                domain.updateDeviceFlags(render(held), _LIVE | (libvirt.VIR_DOMAIN_DEVICE_MODIFY_FORCE if force else 0))
            except libvirt.libvirtError as error:
                if code_of(error) not in _STILL_ASKED:
                    raise
                raise FailedPreconditionError(
                    DEVICE_BUSY,
                    f"the guest has locked the tray of {name}; unmount the medium there, or force it",
                    native=native_of(error, "virDomainUpdateDeviceFlags"),
                    metadata={"device": name},
                ) from error

        await self._change(uuid, "virDomainUpdateDeviceFlags", run)

    async def set_link(self, uuid: UUID, name: str, *, up: bool) -> None:
        """Plug an interface's cable in or out."""

        def run(domain: Any) -> None:
            require_active(domain, "change a link")
            held = names_of_interfaces(live_xml(domain)).get(name)
            state = "up" if up else "down"
            if held is None or (attribute(held, "link", "state") or "up") == state:
                return
            link = held.find("link")
            if link is None:
                held.append(element("link", state=state))
            else:
                link.set("state", state)
            domain.updateDeviceFlags(render(held), _LIVE)

        await self._change(uuid, "virDomainUpdateDeviceFlags", run)

    async def set_vcpus(self, uuid: UUID, count: int, context: CallContext) -> None:
        """Plug virtual processors in or out, up to what the guest was started with; wait until they are."""

        def run(domain: Any) -> None:
            require_active(domain, "change virtual processors")
            if domain.vcpusFlags(_LIVE) != count or domain.info()[3] != count:
                domain.setVcpusFlags(count, _LIVE)

        await self._change(uuid, "virDomainSetVcpusFlags", run)
        if not await self._becomes(uuid, lambda domain: domain.info()[3] == count):
            context.warn(f"the guest has not got to {count} virtual processors yet; it does so in its own time")

    async def set_memory(self, uuid: UUID, memory_bytes: int, context: CallContext) -> None:
        """Set the balloon's target, and wait for a moment until the guest has obeyed.

        A guest without a balloon driver never does; it then shows as waiting for its next start.
        """
        wanted = -(-memory_bytes // _KIB)

        def run(domain: Any) -> None:
            require_active(domain, "change memory")
            domain.setMemoryFlags(wanted, _LIVE)

        await self._change(uuid, "virDomainSetMemoryFlags", run)
        if not await self._becomes(uuid, lambda domain: abs(domain.info()[2] - wanted) <= _BALLOON_SLACK_KIB):
            context.warn("the guest has not given or taken all of the memory yet; it does so in its own time")

    async def _becomes(self, uuid: UUID, test: Callable[[Any], bool]) -> bool:
        """Whether a guest obeys within a moment."""
        deadline = time.monotonic() + _OBEY_S
        while not await self._guests.on_domain(uuid, "virDomainGetInfo", test):
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(_POLL_S)
        return True

    async def set_io_tune(self, uuid: UUID, name: str, tune: IoTune | None) -> None:
        """Limit a disk; None takes all limits away."""
        limits = tune or IoTune()
        wanted = {
            "total_bytes_sec": limits.total_bytes_per_s,
            "read_bytes_sec": limits.read_bytes_per_s,
            "write_bytes_sec": limits.write_bytes_per_s,
            "total_iops_sec": limits.total_requests_per_s,
            "read_iops_sec": limits.read_requests_per_s,
            "write_iops_sec": limits.write_requests_per_s,
        }

        def run(domain: Any) -> None:
            require_active(domain, "limit a disk")
            held = names_of_disks(live_xml(domain)).get(name)
            if held is not None:
                domain.setBlockIoTune(target_of(held), wanted, _LIVE)

        await self._change(uuid, "virDomainSetBlockIoTune", run)

    async def resize(self, uuid: UUID, path: str, capacity_bytes: int) -> None:
        """Make a disk larger: through QEMU while the guest runs, else through the pool that has the file."""

        def run(domain: Any) -> None:
            if is_active(domain):
                disk = next(
                    (found for found in live_xml(domain).findall("devices/disk") if _source(found) == path), None
                )
                if disk is not None:
                    target = target_of(disk)
                    if domain.blockInfo(target)[0] < capacity_bytes:
                        domain.blockResize(target, capacity_bytes, libvirt.VIR_DOMAIN_BLOCK_RESIZE_BYTES)
                    return
            _resize_file(domain.connect(), path, capacity_bytes)

        await self._guests.on_domain(uuid, "virDomainBlockResize", run, lane=LaneName.BULK, unlimited=True)

    async def _change(self, uuid: UUID, name: str, run: Callable[[Any], T]) -> T:
        return await self._guests.on_domain(uuid, name, run, lane=LaneName.CHANGE)


def capacity_of(domain: Any, path: str) -> int | None:
    """The size in bytes that a guest sees of a disk's file; None where libvirt cannot tell."""
    try:
        return int(domain.blockInfo(path)[0])
    except libvirt.libvirtError as error:
        if code_of(error) != libvirt.VIR_ERR_NO_SUPPORT:
            return None
    try:  # libxl: the pool knows what the hypervisor's driver is not asked
        return int(domain.connect().storageVolLookupByPath(path).info()[1])
    except libvirt.libvirtError:
        return None


def _is_gone(domain: Any, kind: str, name: str) -> bool:
    return not is_active(domain) or name not in _FINDERS[kind](live_xml(domain))


def _source(disk: Element) -> str:
    source = disk.find("source")
    if source is None:
        return ""
    return next((source.get(key) or "" for key in ("file", "dev", "name") if source.get(key)), "")


def _order_is_free(live: Element, order: str) -> bool:
    used = {found.get("order") for found in live.iterfind("devices/*/boot")}
    return order not in used and live.find("os/boot") is None


def _put_in(held: Element, drive: Element) -> None:
    """Give a running drive the medium of another description of it, and nothing else."""
    for tag in ("source", "backingStore", "mirror"):
        for found in held.findall(tag):
            held.remove(found)
    medium, driver, wanted = drive.find("source"), held.find("driver"), drive.find("driver")
    if medium is not None:
        held.append(copy.deepcopy(medium))
    if driver is not None and wanted is not None:
        driver.set("type", wanted.get("type") or "raw")
    held.set("type", drive.get("type") or "file")


def _has_controller(live: Element, controller: Element) -> bool:
    return any(
        (found.get("type"), found.get("index")) == (controller.get("type"), controller.get("index"))
        for found in live.findall("devices/controller")
    )


def _mark_of(kind: str, device: Element) -> str:
    """What the metadata knows a device by."""
    return target_of(device) if kind == "disk" else attribute(device, "mac", "address").lower()


def _name(domain: Any, live: Element, kind: str, mark: str, name: str) -> None:
    """Write down in the running domain which device has which name; an empty name takes it away."""
    known = Metadata.parse(live.find("metadata"))
    disks, interfaces = dict(known.disks), dict(known.interfaces)
    names = disks if kind == "disk" else interfaces
    for other in [key for key, value in names.items() if value == name or key == mark]:
        del names[other]
    if name:
        names[mark] = name
    written = Metadata(disks, interfaces, known.options).build()[0]
    for entry in written.iter():  # libvirt puts them into the namespace, and refuses those that are in it already
        entry.tag = str(entry.tag).rpartition("}")[2]
    etree.cleanup_namespaces(written)
    domain.setMetadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, render(written), "virtd", NAMESPACE, _LIVE)


def _resize_file(connection: Any, path: str, capacity_bytes: int) -> None:
    try:
        volume = connection.storageVolLookupByPath(path)
    except libvirt.libvirtError as error:
        if code_of(error) != libvirt.VIR_ERR_NO_STORAGE_VOL:
            raise
        for pool in connection.listAllStoragePools(libvirt.VIR_CONNECT_LIST_STORAGE_POOLS_ACTIVE):
            look_again(pool)
        volume = connection.storageVolLookupByPath(path)
    if volume.info()[1] < capacity_bytes:
        volume.resize(capacity_bytes, 0)
