"""A guest's definition as libvirt's own XML, its snapshots' records, its firmware variables, its autostart."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any, Final
from uuid import UUID, uuid4

import libvirt

from virtd.backend.api import CallContext, DiskFile
from virtd.backend.capabilities import TRASH
from virtd.errors import (
    GUEST_EXISTS,
    INVALID_STATE,
    JOURNAL_CORRUPT,
    AlreadyExistsError,
    FailedPreconditionError,
    InternalError,
    unsupported,
)
from virtd.libvirt.connections import HostConnections, LaneName
from virtd.libvirt.guests import Guests, is_active
from virtd.libvirt.storage_objects import delete_native, look_again, pool_at, volume_or_none
from virtd.libvirt.xml.definition import name_of, renamed, variables_path, with_disk_files
from virtd.libvirt.xml.storage import PoolXml, VolumeXml
from virtd.model.guest import DiskFormat

_FORMATS: Final = {DiskFormat.QCOW2: "qcow2", DiskFormat.RAW: "raw"}
_INACTIVE: Final = libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE
_REDEFINE: Final = libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE
_CURRENT: Final = libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_CURRENT
_CHUNK: Final = 256 * 1024
_VARIABLES_MAX: Final = 128 * 2**20


class Definitions:
    """See :class:`virtd.backend.api.DefinitionFacet` and :class:`virtd.backend.api.AutostartFacet`.

    :param variables_directory: where libvirt puts firmware variables of guests that do not say; None where
        that cannot be known.
    """

    def __init__(self, connections: HostConnections, guests: Guests, variables_directory: str | None) -> None:
        self._connections: Final = connections
        self._guests: Final = guests
        self._variables_directory: Final = variables_directory

    # ------------------------------------------------------------------------------------- autostart

    async def get_autostart(self, uuid: UUID) -> bool:
        """See the SPI."""
        return await self._guests.on_domain(uuid, "virDomainGetAutostart", lambda domain: bool(domain.autostart()))

    async def set_autostart(self, uuid: UUID, context: CallContext, *, enabled: bool) -> None:
        """See the SPI."""
        context.checkpoint()

        def run(domain: Any) -> None:
            if bool(domain.autostart()) != enabled:
                domain.setAutostart(int(enabled))

        await self._guests.on_domain(uuid, "virDomainSetAutostart", run, lane=LaneName.CHANGE)

    # ----------------------------------------------------------------------------------- definitions

    async def read_definition(self, uuid: UUID) -> str:
        """See the SPI."""

        def run(domain: Any) -> str:
            current = domain.snapshotCurrent().getName() if _has_current(domain) else ""
            return json.dumps(
                {"domain": domain.XMLDesc(_INACTIVE), "snapshots": list(_snapshots(domain)), "current": current}
            )

        return await self._guests.on_domain(uuid, "virDomainGetXMLDesc", run)

    async def write_definition(self, uuid: UUID, name: str, definition: str, context: CallContext) -> None:
        """See the SPI."""
        context.checkpoint()
        kept = _parsed(definition)
        xml, snapshots, current = kept["domain"], list(kept["snapshots"]), kept["current"]
        if name and name != name_of(xml):
            xml, snapshots = renamed(xml, name), [renamed(snapshot, name) for snapshot in snapshots]
        wanted = name or name_of(xml)

        def run(connection: Any) -> None:
            with contextlib.suppress(libvirt.libvirtError):
                holder = connection.lookupByName(wanted)
                if holder.UUIDString() != str(uuid):
                    raise AlreadyExistsError(GUEST_EXISTS, f"the host has a guest named {wanted}")
            domain = connection.defineXML(xml)
            try:
                for snapshot in snapshots:
                    flags = _REDEFINE | (_CURRENT if name_of(snapshot) == current else 0)
                    domain.snapshotCreateXML(snapshot, flags)
            except libvirt.libvirtError:
                with contextlib.suppress(libvirt.libvirtError):
                    domain.undefineFlags(
                        libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA | libvirt.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM
                    )
                raise

        await self._connections.call("virDomainDefineXMLFlags", run, lane=LaneName.CHANGE, unlimited=True)

    async def replace_disk_files(self, uuid: UUID, files: Mapping[str, DiskFile], context: CallContext) -> None:
        """See the SPI."""
        context.checkpoint()
        wanted = {path: (file.path, _FORMATS[file.format]) for path, file in files.items()}

        def run(connection: Any) -> None:
            domain = connection.lookupByUUID(uuid.bytes)
            _require_down(domain)
            before = domain.XMLDesc(_INACTIVE)
            after = with_disk_files(before, wanted)
            if after != with_disk_files(before, {}):
                connection.defineXML(after)

        await self._connections.call("virDomainDefineXMLFlags", run, lane=LaneName.CHANGE, unlimited=True)

    # ----------------------------------------------------------------------------- firmware variables

    async def read_variables(self, uuid: UUID) -> bytes | None:
        """See the SPI."""

        def run(connection: Any) -> bytes | None:
            path = self._path(connection.lookupByUUID(uuid.bytes))
            if path is None:
                return None
            with _directory(connection, path) as pool:
                volume = volume_or_none(pool, PurePosixPath(path).name)
                return None if volume is None else _download(connection, volume)

        return await self._connections.call("virStorageVolDownload", run)

    async def write_variables(self, uuid: UUID, data: bytes, context: CallContext) -> None:
        """See the SPI."""
        context.checkpoint()

        def run(connection: Any) -> None:
            domain = connection.lookupByUUID(uuid.bytes)
            _require_down(domain)
            path = self._path(domain)
            if path is None:
                raise unsupported(TRASH, "where this host keeps firmware variables is not known")
            with _directory(connection, path) as pool:
                old = volume_or_none(pool, PurePosixPath(path).name)
                if old is not None:
                    delete_native(old)
                volume = pool.createXML(VolumeXml(PurePosixPath(path).name, "raw", len(data)).to_xml(), 0)
                try:
                    _upload(connection, volume, data)
                except BaseException:
                    with contextlib.suppress(libvirt.libvirtError):
                        delete_native(volume)
                    raise

        await self._connections.call("virStorageVolUpload", run, lane=LaneName.CHANGE)

    def _path(self, domain: Any) -> str | None:
        """Where the guest's variables lie, or will lie: libvirt 9.0 says so of active guests only."""
        found = variables_path(domain.XMLDesc(0)) or variables_path(domain.XMLDesc(_INACTIVE))
        if found or self._variables_directory is None:
            return found or None
        return f"{self._variables_directory}/{domain.name()}_VARS.fd"


def _parsed(definition: str) -> dict[str, Any]:
    try:
        found = json.loads(definition)
    except ValueError as error:
        raise InternalError(JOURNAL_CORRUPT, "what was kept of the guest's definition cannot be read") from error
    return {"domain": str(found["domain"]), "snapshots": found["snapshots"], "current": found["current"]}


def _require_down(domain: Any) -> None:
    if is_active(domain):
        raise FailedPreconditionError(INVALID_STATE, "the guest runs", allowed_actions=("shutdown", "stop"))


def _has_current(domain: Any) -> bool:
    return bool(_supported(domain.hasCurrentSnapshot, default=False))


def _supported(call: Callable[[], Any], *, default: Any) -> Any:
    try:
        return call()
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_SUPPORT:
            return default
        raise


def _snapshots(domain: Any) -> Iterator[str]:
    """Parents before their children."""
    flags = libvirt.VIR_DOMAIN_SNAPSHOT_LIST_TOPOLOGICAL
    for snapshot in _supported(lambda: domain.listAllSnapshots(flags), default=()):
        yield snapshot.getXMLDesc(libvirt.VIR_DOMAIN_SNAPSHOT_XML_SECURE)


@contextlib.contextmanager
def _directory(connection: Any, path: str) -> Iterator[Any]:
    """The directory of a file, as a pool: for a moment, where none holds it."""
    directory = str(PurePosixPath(path).parent)
    holder = pool_at(connection, directory)
    if holder is not None:
        look_again(holder)
        yield holder
        return
    pool = connection.storagePoolCreateXML(
        PoolXml(f"virtd-firmware-{uuid4()}", directory).to_xml(), libvirt.VIR_STORAGE_POOL_CREATE_WITH_BUILD
    )
    try:
        yield pool
    finally:
        with contextlib.suppress(libvirt.libvirtError):
            pool.destroy()


def _download(connection: Any, volume: Any) -> bytes:
    stream, data = connection.newStream(0), bytearray()
    volume.download(stream, 0, 0, 0)
    try:
        while part := stream.recv(_CHUNK):
            data += part
            if len(data) > _VARIABLES_MAX:
                break
        stream.finish()
    except BaseException:
        with contextlib.suppress(libvirt.libvirtError):
            stream.abort()
        raise
    return bytes(data)


def _upload(connection: Any, volume: Any, data: bytes) -> None:
    stream, sent = connection.newStream(0), 0
    volume.upload(stream, 0, len(data), 0)
    try:
        while sent < len(data):
            sent += stream.send(data[sent : sent + _CHUNK])
        stream.finish()
    except BaseException:
        with contextlib.suppress(libvirt.libvirtError):
            stream.abort()
        raise
