"""Pools: define, start, stop, forget.

What libvirt would do and virtd does not: ``build`` formats devices and makes volume groups for some
kinds of pools; it is called for directories and mount points only, which it merely creates.
"""

from __future__ import annotations

import contextlib
from typing import Any, Final
from urllib.parse import urlsplit

import libvirt

from virtd.backend.api import CallContext, PoolRequest
from virtd.backend.capabilities import POOL_LOGICAL, POOL_MANAGE, POOL_NFS
from virtd.errors import (
    POOL_EXISTS,
    POOL_INACTIVE,
    POOL_NOT_EMPTY,
    AlreadyExistsError,
    FailedPreconditionError,
    unsupported,
)
from virtd.libvirt.connections import HostConnections, LaneName
from virtd.libvirt.errors import native_of
from virtd.libvirt.storage_objects import look_again, pool_or_none, read_pool
from virtd.libvirt.xml.build import parse
from virtd.libvirt.xml.storage import PoolXml
from virtd.model.storage import Pool, PoolKind

_KINDS: Final = {PoolKind.DIR: "dir", PoolKind.LOGICAL: "logical", PoolKind.NFS: "netfs"}
_CAPABILITY: Final = {PoolKind.DIR: POOL_MANAGE, PoolKind.LOGICAL: POOL_LOGICAL, PoolKind.NFS: POOL_NFS}
_CALL: Final = "virStoragePoolCreate"


class Pools:
    """See :class:`virtd.backend.api.PoolFacet`."""

    def __init__(self, connections: HostConnections) -> None:
        self._connections: Final = connections

    def lower_pool(self, request: PoolRequest) -> str:
        """The pool's XML."""
        return _xml(request).to_xml()

    async def define_pool(self, request: PoolRequest, context: CallContext) -> Pool:
        """Define it, and make its directory."""
        context.checkpoint()
        capability, wanted = _CAPABILITY[request.kind], _xml(request)

        def run(connection: Any) -> Pool:
            if capability != POOL_MANAGE and (why := missing_kinds(connection).get(capability)):
                raise unsupported(capability, why)
            known = pool_or_none(connection, request.name)
            if known is not None:
                seen = PoolXml.parse(known.XMLDesc(0))
                if (seen.kind, seen.path, seen.source) != (wanted.kind, wanted.path, wanted.source):
                    raise AlreadyExistsError(POOL_EXISTS, f"the host has a pool {request.name} already")
                pool = known
            else:
                try:
                    pool = connection.storagePoolDefineXML(wanted.to_xml(), 0)
                except libvirt.libvirtError as error:
                    # libvirt has one code for all conflicts of pools.
                    if error.get_error_code() == libvirt.VIR_ERR_OPERATION_FAILED:
                        native = native_of(error, "virStoragePoolDefineXML")
                        raise AlreadyExistsError(
                            POOL_EXISTS, f"another pool of the host has this place: {native.message}", native=native
                        ) from error
                    raise
            try:
                if request.kind is not PoolKind.LOGICAL and not pool.isActive():
                    pool.build(0)
                pool.setAutostart(int(request.autostart))
                return read_pool(pool)
            except BaseException:
                if known is None:
                    with contextlib.suppress(libvirt.libvirtError):
                        pool.undefine()
                raise

        return await self._connections.call("virStoragePoolDefineXML", run, lane=LaneName.CHANGE)

    async def start_pool(self, pool: str, context: CallContext) -> Pool:
        """Start it (an NFS pool is mounted)."""
        context.checkpoint()

        def run(connection: Any) -> Pool:
            found = connection.storagePoolLookupByName(pool)
            if not found.isActive():
                try:
                    found.create(0)
                except libvirt.libvirtError:
                    if not found.isActive():  # else somebody was quicker
                        raise
            return read_pool(found)

        # A server that does not answer makes a mount wait for minutes.
        return await self._connections.call(_CALL, run, lane=LaneName.BULK, unlimited=True)

    async def stop_pool(self, pool: str, context: CallContext) -> Pool:
        """Stop it (an NFS pool is unmounted)."""
        context.checkpoint()

        def run(connection: Any) -> Pool:
            found = connection.storagePoolLookupByName(pool)
            _stop(found)
            return read_pool(found)

        return await self._connections.call("virStoragePoolDestroy", run, lane=LaneName.CHANGE)

    async def refresh_pool(self, pool: str, context: CallContext) -> Pool:
        """Look again."""
        context.checkpoint()

        def run(connection: Any) -> Pool:
            found = connection.storagePoolLookupByName(pool)
            if not found.isActive():
                raise FailedPreconditionError(POOL_INACTIVE, f"the pool {pool} is not started")
            look_again(found)
            return read_pool(found)

        return await self._connections.call("virStoragePoolRefresh", run, lane=LaneName.BULK, unlimited=True)

    async def set_pool_autostart(self, pool: str, *, autostart: bool) -> Pool:
        """Whether libvirt starts it."""

        def run(connection: Any) -> Pool:
            found = connection.storagePoolLookupByName(pool)
            if bool(found.autostart()) != autostart:
                found.setAutostart(int(autostart))
            return read_pool(found)

        return await self._connections.call("virStoragePoolSetAutostart", run, lane=LaneName.CHANGE)

    async def delete_pool(self, pool: str, context: CallContext, *, remove_directory: bool = False) -> None:
        """Stop and undefine it.  Idempotent."""
        context.checkpoint()

        def run(connection: Any) -> None:
            found = pool_or_none(connection, pool)
            if found is None:
                return
            was_active = bool(found.isActive())
            _stop(found)
            if remove_directory and PoolXml.parse(found.XMLDesc(0)).kind != "logical":
                try:
                    found.delete(0)  # rmdir: what is in it keeps it
                except libvirt.libvirtError as error:
                    if was_active:
                        with contextlib.suppress(libvirt.libvirtError):
                            found.create(0)
                    native = native_of(error, "virStoragePoolDelete")
                    raise FailedPreconditionError(
                        POOL_NOT_EMPTY, f"the pool's directory was not removed: {native.message}", native=native
                    ) from error
            if found.isPersistent():
                found.undefine()

        await self._connections.call("virStoragePoolUndefine", run, lane=LaneName.CHANGE)


def missing_kinds(connection: Any) -> dict[str, str]:
    """The kinds of pools that this host has not: capability -> why.

    That libvirt has them says nothing of the programs that they need (LVM, mount.nfs): those are missed
    when a pool starts.
    """
    if urlsplit(connection.getURI()).path.endswith("/session"):
        why = "libvirt runs as an ordinary user on this host, who may neither mount nor use LVM"
        return {POOL_LOGICAL: why, POOL_NFS: why}
    try:
        told = parse(connection.getStoragePoolCapabilities(0))
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_SUPPORT:  # before libvirt 5.2
            return {}
        raise
    offered = {entry.get("type") for entry in told.findall("pool") if entry.get("supported") == "yes"}
    return {
        _CAPABILITY[kind]: f"the host's libvirt was built or installed without pools of type {_KINDS[kind]}"
        for kind in (PoolKind.LOGICAL, PoolKind.NFS)
        if _KINDS[kind] not in offered
    }


def _xml(request: PoolRequest) -> PoolXml:
    path = f"/dev/{request.volume_group}" if request.kind is PoolKind.LOGICAL else request.path
    return PoolXml(
        request.name,
        path,
        _KINDS[request.kind],
        server=request.server,
        export=request.export,
        volume_group=request.volume_group,
    )


def _stop(pool: Any) -> None:
    if pool.isActive():
        try:
            pool.destroy()
        except libvirt.libvirtError:
            if pool.isActive():
                raise
