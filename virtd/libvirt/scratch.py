"""A volume that exists for a moment, in a pool that exists for a moment."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Final
from uuid import uuid4

import libvirt

from virtd.libvirt.xml.storage import PoolXml, VolumeXml

SCRATCH_PREFIX: Final = "virtd-scratch-"
_VOLUME: Final = "data.raw"


@contextlib.contextmanager
def scratch_volume(connection: Any, directory: str, data: bytes) -> Iterator[str]:
    """Put ``data`` on the host and yield its path; afterwards volume, pool and folder are gone.

    Blocking: for worker threads.

    :param directory: the folder is made beside it, with a name of its own.
    :raises libvirt.libvirtError: the host has no storage driver, or no space, or forbids it.
    """
    name = f"{SCRATCH_PREFIX}{uuid4().hex[:12]}"
    pool = connection.storagePoolDefineXML(PoolXml(name, f"{directory}-{name}").to_xml(), 0)
    try:
        pool.build(0)
        pool.create(0)
        volume = pool.createXML(VolumeXml(_VOLUME, "raw", len(data)).to_xml(), 0)
        try:
            stream = connection.newStream(0)
            volume.upload(stream, 0, len(data), 0)
            _send(stream, data)
            yield volume.path()
        finally:
            with contextlib.suppress(libvirt.libvirtError):
                volume.delete(0)
    finally:
        for step in (pool.destroy, pool.delete, pool.undefine):
            with contextlib.suppress(libvirt.libvirtError):
                step()


def _send(stream: Any, data: bytes) -> None:
    rest = memoryview(data)
    try:
        while rest:
            rest = rest[stream.send(bytes(rest[: 256 * 1024])) :]
        stream.finish()
    except BaseException:
        with contextlib.suppress(libvirt.libvirtError):
            stream.abort()
        raise
