"""Looking pools and volumes up, reading and deleting them: what all of storage shares.

Blocking: for worker threads, with a native connection.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from typing import Any, Final
from uuid import uuid4

import libvirt

from virtd.errors import (
    POOL_INACTIVE,
    STORAGE_FULL,
    VOLUME_EXISTS,
    AlreadyExistsError,
    FailedPreconditionError,
    ResourceExhaustedError,
    VirtdError,
)
from virtd.libvirt.errors import code_of, native_of
from virtd.libvirt.xml.storage import PoolXml, VolumeXml
from virtd.model.storage import Pool, PoolState, Volume

DEFAULT_POOL: Final = "virtd"
_BUSY_S: Final = 0.2


def pool_or_none(connection: Any, name: str) -> Any:
    """The pool, or None."""
    try:
        return connection.storagePoolLookupByName(name)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_STORAGE_POOL:
            return None
        raise


def active_pool(connection: Any, name: str) -> Any:
    """The pool, which is active; the default pool is started for it.

    :raises FailedPreconditionError: POOL_INACTIVE: whoever stopped a pool wants it to stay so.
    """
    pool = connection.storagePoolLookupByName(name)
    if not pool.isActive():
        if name != DEFAULT_POOL:
            raise FailedPreconditionError(POOL_INACTIVE, f"the pool {name} is not started")
        pool.create(0)
    return pool


def volume_or_none(pool: Any, name: str) -> Any:
    """The volume, or None."""
    try:
        return pool.storageVolLookupByName(name)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_STORAGE_VOL:
            return None
        raise


def look_again(pool: Any, limit_s: float = 20.0) -> None:
    """Have the pool read anew.  libvirt refuses that while a volume is made in it: this waits for the end of it.

    :raises libvirt.libvirtError: it cannot be read, or was not left alone for so long.
    """
    deadline = time.monotonic() + limit_s
    while True:
        try:
            pool.refresh(0)
        except libvirt.libvirtError as error:
            # "has asynchronous jobs running" has no code of its own.
            busy = code_of(error) == libvirt.VIR_ERR_INTERNAL_ERROR
            if not busy or error.get_error_domain() != libvirt.VIR_FROM_STORAGE or time.monotonic() > deadline:
                raise
            time.sleep(_BUSY_S)
        else:
            return


def refuse_existing(pool: Any, name: str) -> None:
    """Refuse a name that is taken.

    :raises AlreadyExistsError: VOLUME_EXISTS.
    """
    # The refresh finds files that were put there behind the pool's back: they are not overwritten.
    with contextlib.suppress(libvirt.libvirtError):
        pool.refresh(0)
    if volume_or_none(pool, name) is not None:
        raise AlreadyExistsError(VOLUME_EXISTS, f"the pool {pool.name()} has a volume named {name}")


def discard_failed(pool: Any, name: str) -> None:
    """Remove what a failed conversion may have left."""
    with contextlib.suppress(libvirt.libvirtError):
        pool.refresh(0)
        leftover = volume_or_none(pool, name)
        if leftover is not None:
            delete_native(leftover)


def is_full(pool: Any, needed_bytes: int | None) -> bool:
    """Whether the pool cannot hold so much.

    qemu-img says "no space" in its text only, and texts are not decided upon.
    """
    with contextlib.suppress(libvirt.libvirtError):
        pool.refresh(0)
        return needed_bytes is not None and pool.info()[3] < needed_bytes
    return False


def full_error(error: libvirt.libvirtError, call: str) -> VirtdError:
    """STORAGE_FULL, with what libvirt said."""
    native = native_of(error, call)
    return ResourceExhaustedError(STORAGE_FULL, f"the pool has no space left: {native.message}", native=native)


def delete_native(volume: Any) -> None:
    """Delete it; one that is gone already is deleted."""
    try:
        volume.delete(0)
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_NO_STORAGE_VOL:
            raise


def volume_at(connection: Any, path: str) -> Any:
    """The volume that any active pool has at this path, or None."""
    try:
        return connection.storageVolLookupByPath(path)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_STORAGE_VOL:
            return None
        raise


@contextlib.contextmanager
def source_volume(connection: Any, path: str) -> Iterator[Any]:
    """The file as a volume; its directory becomes a pool for a moment where none holds it."""
    known = volume_at(connection, path)
    if known is not None:
        yield known
        return
    directory, name = os.path.split(path)
    holder = pool_at(connection, directory)
    if holder is not None:
        look_again(holder)
        yield holder.storageVolLookupByName(name)
        return
    pool = connection.storagePoolCreateXML(PoolXml(f"virtd-source-{uuid4()}", directory).to_xml(), 0)
    try:
        yield pool.storageVolLookupByName(name)
    finally:
        with contextlib.suppress(libvirt.libvirtError):
            pool.destroy()


def pool_at(connection: Any, directory: str) -> Any:
    """The active pool of this directory: libvirt refuses a second one."""
    for pool in connection.listAllStoragePools(libvirt.VIR_CONNECT_LIST_STORAGE_POOLS_ACTIVE):
        with contextlib.suppress(libvirt.libvirtError):
            if PoolXml.parse(pool.XMLDesc(0)).path.rstrip("/") == directory.rstrip("/"):
                return pool
    return None


def read_pool(pool: Any) -> Pool:
    """The record of a pool; its name is the bare id."""
    xml = PoolXml.parse(pool.XMLDesc(0))
    active = bool(pool.isActive())
    return Pool(
        name=xml.name,
        kind=xml.kind,
        path=xml.path,
        state=PoolState.ACTIVE if active else PoolState.INACTIVE,
        # libvirt writes zero for a pool that it has not looked into: that is "unknown".
        capacity_bytes=xml.capacity_bytes if active else None,
        allocation_bytes=xml.allocation_bytes if active else None,
        available_bytes=xml.available_bytes if active else None,
        source=xml.source,
        autostart=bool(pool.autostart()),
    )


def read_made(volume: Any) -> Volume:
    """Read what was just made.  Where that fails it is deleted again: nobody would know of it."""
    try:
        return read_volume(volume)
    except BaseException:
        with contextlib.suppress(libvirt.libvirtError):
            delete_native(volume)
        raise


def read_volume(volume: Any) -> Volume:
    """The record of a volume; its name is the bare id."""
    xml = VolumeXml.parse(volume.XMLDesc(0))
    return Volume(
        name=xml.name,
        path=xml.path,
        format=xml.format,
        capacity_bytes=xml.capacity_bytes,
        allocation_bytes=xml.allocation_bytes,
        backing_path=xml.backing_path,
    )
