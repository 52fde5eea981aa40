"""The images of a guest's snapshots, as the files themselves say, and who else uses them.

On this machine qemu-img reads them; elsewhere, and where virtd may not read the files, libvirt's
volumes tell what lies below each.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, Final
from uuid import UUID

import libvirt

from virtd.errors import (
    SNAPSHOT_BLOCKED,
    SNAPSHOT_CHAIN_BROKEN,
    VOLUME_IN_USE,
    FailedPreconditionError,
    VirtdError,
)
from virtd.libvirt import checkpoints as backup_marks
from virtd.libvirt import qemu_img
from virtd.libvirt.guests import is_active
from virtd.libvirt.qemu_img import Layer, UnreadableChainError
from virtd.libvirt.snapshot_choice import writable
from virtd.libvirt.snapshot_layers import Forest, InUseError, faults
from virtd.libvirt.xml.build import parse
from virtd.libvirt.xml.domain import Domain
from virtd.libvirt.xml.snapshot import DomainSnapshot, ImageFile, chains_of, files_of
from virtd.libvirt.xml.storage import PoolXml, VolumeXml

DEFAULT_POOL: Final = "virtd"
_DIRECTORY_KINDS: Final = frozenset({"dir", "fs", "netfs"})
_CHAIN_MAX: Final = 200


@dataclass(frozen=True, slots=True)
class Images:
    """What was read.

    :param local: whether the files can be worked on here, by qemu-img.
    :param problems: files that cannot be read, and why.
    :param spelled: real path -> the path as libvirt names it.
    """

    forest: Forest
    layers: Mapping[str, Layer]
    snapshots: tuple[DomainSnapshot, ...]
    active: bool
    local: bool
    problems: tuple[str, ...] = ()
    live: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    spelled: Mapping[str, str] = field(default_factory=dict)
    here: bool = True

    def image(self, path: str) -> ImageFile:
        """An image with its format."""
        return ImageFile(self.spelled.get(path, path), self.layers[path].format)

    def check(self) -> None:
        """Compare the files with the records.

        :raises FailedPreconditionError: SNAPSHOT_CHAIN_BROKEN, with both chains.
        """
        live = {target: chain for target, chain in self.live.items() if target in self.forest.active}
        found = [*self.problems, *faults(self.forest, live)]
        if found:
            raise FailedPreconditionError(
                SNAPSHOT_CHAIN_BROKEN,
                "the images on disk are not what the snapshots' records say: " + "; ".join(found[:5]),
                metadata={"chain_on_disk": self.on_disk(), "chain_in_records": self.in_records()},
            )

    def on_disk(self) -> str:
        """What lies below each disk, as the files say."""
        return "; ".join(
            f"{target}: {' -> '.join((path, *self.forest.below(path)))}"
            for target, path in sorted(self.forest.active.items())
        )

    def in_records(self) -> str:
        """What should lie below each disk, as libvirt's records say."""
        kept = "; ".join(
            f"{name}: {', '.join(f'{target} {path}' for target, path in sorted(images.items()))}"
            for name, images in self.forest.frozen.items()
        )
        live = "; ".join(f"{target}: {' -> '.join(chain)}" for target, chain in sorted(self.live.items()))
        return f"snapshots {kept or 'none'}; current {self.forest.current or 'none'}; running {live or 'no'}"


def real(path: str, *, here: bool) -> str:
    """The path without symbolic links, where they can be seen."""
    return os.path.realpath(path) if here else os.path.normpath(path)


def overlay_prefix(uuid: UUID) -> str:
    """What the names of images begin with that virtd's snapshots of this guest make."""
    return f"{uuid.hex[:8]}-"


def read(connection: Any, domain: Any, *, here: bool) -> Images:
    """Read every image of a guest's disks and snapshots.

    :param here: whether the host is this machine.
    """
    active = is_active(domain)
    xml = domain.XMLDesc(0)
    # The running guest's disks, or what it will start with.
    now = files_of(parse(xml))
    targets = {disk.target for disk in writable(Domain.parse(xml)) if disk.kind == "file"}
    snapshots = tuple(DomainSnapshot.parse(found.getXMLDesc(0)) for found in domain.listAllSnapshots(0))
    external = [snapshot for snapshot in snapshots if snapshot.external]
    roots = [now[target] for target in sorted(targets & set(now))]
    roots += [image for snapshot in external for image in snapshot.frozen.values()]
    reader = _Reader(connection, here=here)
    for image in roots:
        reader.read(image)
    prefix = overlay_prefix(UUID(domain.UUIDString()))
    recorded = {real(path, here=here) for snapshot in external for path in snapshot.overlays.values() if path}
    named = {path for path in reader.layers if PurePosixPath(path).name.startswith(prefix)}
    current = str(domain.snapshotCurrent(0).getName()) if domain.hasCurrentSnapshot(0) else ""
    forest = Forest(
        backing={path: layer.backing for path, layer in reader.layers.items()},
        active={target: real(now[target].path, here=here) for target in targets if target in now},
        frozen={
            snapshot.name: {target: real(image.path, here=here) for target, image in snapshot.frozen.items()}
            for snapshot in external
        },
        parents={snapshot.name: snapshot.parent for snapshot in snapshots},
        current=current,
        overlays=frozenset(named | (recorded & set(reader.layers))),
        over={
            snapshot.name: {target: real(path, here=here) for target, path in snapshot.overlays.items() if path}
            for snapshot in external
        },
    )
    live = chains_of(xml) if active else {}
    return Images(
        forest=forest,
        layers=reader.layers,
        snapshots=snapshots,
        active=active,
        local=reader.local,
        problems=tuple(reader.problems),
        live={target: tuple(real(path, here=here) for path in chain) for target, chain in live.items()},
        spelled={real(path, here=here): path for chain in live.values() for path in chain}
        | {real(image.path, here=here): image.path for image in roots},
        here=here,
    )


class _Reader:
    def __init__(self, connection: Any, *, here: bool) -> None:
        self._connection = connection
        self.local = here and qemu_img.available()
        self.layers: dict[str, Layer] = {}
        self.problems: list[str] = []
        self._fresh: set[str] = set()

    def read(self, image: ImageFile) -> None:
        if self.local and not _reachable(image.path):
            self.local = False  # another user's: libvirt knows them
        try:
            chain = qemu_img.chain(image.path, image.format) if self.local else self._volumes(image)
        except UnreadableChainError as error:
            self.problems.append(f"{image.path}: {error}")
            return
        stated = image.format
        for layer in chain:
            if layer.format != stated:
                self.problems.append(f"{layer.path} is {layer.format}, but {stated or 'no format'} is recorded for it")
            stated = layer.backing_format
            self.layers[layer.path] = layer

    def _volumes(self, image: ImageFile) -> tuple[Layer, ...]:
        found: list[Layer] = []
        path, format_ = image.path, image.format
        while path:
            if len(found) > _CHAIN_MAX or any(layer.path == path for layer in found):
                raise UnreadableChainError("the chain is a ring")
            directory = str(PurePosixPath(path).parent)
            if directory not in self._fresh:
                # A pool remembers what lay below each image when it was looked into last.
                self._fresh.add(directory)
                _refresh_pool_of(self._connection, path)
            volume = volume_at(self._connection, path)
            if volume is None:
                raise UnreadableChainError(f"{path} lies in no pool of the host, and virtd cannot read it itself")
            xml = VolumeXml.parse(volume.XMLDesc(0))
            # A raw image's content is its guest's: whatever libvirt takes it for, nothing lies below it.
            backing, below = (xml.backing_path, xml.backing_format) if format_ != "raw" else ("", "")
            found.append(Layer(path, format_, backing, below, (), xml.capacity_bytes or 0))
            path, format_ = backing, below
        return tuple(found)


def _reachable(path: str) -> bool:
    """Whether virtd may work on the file here.  One that is missing counts: that it is, is to be said."""
    try:
        Path(path).stat()
    except PermissionError:
        return False
    except OSError:
        return True
    return os.access(path, os.R_OK | os.W_OK)


def with_users(images: Images, connection: Any, domain: Any) -> Images:
    """The same, with everybody else who uses one of the images: guests, and volumes based on them."""
    own, here = set(images.forest.backing), images.here
    users: dict[str, set[str]] = {}
    for volume in _volumes_of(connection):
        path, below = real(volume.path, here=here), real(volume.backing_path or "/", here=here)
        if path not in own and below in own:
            users.setdefault(below, set()).add(path)
    mine = domain.UUIDString()
    for other in connection.listAllDomains(0):
        if other.UUIDString() == mine:
            continue
        with contextlib.suppress(libvirt.libvirtError):  # it may be gone by now
            xml = other.XMLDesc(0)
            paths = {image.path for image in files_of(parse(xml)).values()}
            paths.update(path for chain in chains_of(xml).values() for path in chain)
            for path in {real(path, here=here) for path in paths} & own:
                users.setdefault(path, set()).add(f"guest {other.name()}")
    forest = replace(images.forest, users={path: tuple(sorted(names)) for path, names in users.items()})
    return replace(images, forest=forest)


def _volumes_of(connection: Any) -> Iterable[VolumeXml]:
    for pool in connection.listAllStoragePools(libvirt.VIR_CONNECT_LIST_STORAGE_POOLS_ACTIVE):
        with contextlib.suppress(libvirt.libvirtError):
            pool.refresh(0)
        with contextlib.suppress(libvirt.libvirtError):
            for volume in pool.listAllVolumes(0):
                with contextlib.suppress(libvirt.libvirtError):
                    yield VolumeXml.parse(volume.XMLDesc(0))


def in_use(error: InUseError) -> VirtdError:
    """VOLUME_IN_USE."""
    return FailedPreconditionError(
        VOLUME_IN_USE,
        f"{error.path} would change, but it is used by {', '.join(error.users)}",
        metadata={"path": error.path, "used_by": ",".join(error.users)},
    )


def refuse_blocked(domain: Any, targets: Iterable[str], *, checkpoints: bool) -> None:
    """Raise SNAPSHOT_BLOCKED where something else works on the disks, or counts on them.

    :param checkpoints: whether checkpoints are in the way too.
    """
    if is_active(domain):
        for target in targets:
            job: Mapping[str, Any] = {}
            with contextlib.suppress(libvirt.libvirtError):
                job = domain.blockJobInfo(target, 0)
            if job:
                raise FailedPreconditionError(
                    SNAPSHOT_BLOCKED, f"a block job (a backup, a copy or a merge) works on the disk {target}"
                )
    if not checkpoints:
        return
    names: list[str] = []
    with contextlib.suppress(libvirt.libvirtError):  # a driver without checkpoints
        # virtd's own are dropped when it comes to it: the next backup is then a full one.
        names = [name for name in backup_marks.names(domain) if name not in backup_marks.ours(domain)]
    if names:
        raise FailedPreconditionError(
            SNAPSHOT_BLOCKED,
            f"the guest has checkpoints of backups ({', '.join(names[:5])}): what changed since then would be lost "
            "with them, and the next incremental backup would be wrong; delete them first",
            metadata={"checkpoints": ",".join(names)},
        )


# -------------------------------------------------------------------------------------- pools


@dataclass(frozen=True, slots=True)
class Place:
    """Where new files go: a directory, and the pool that it is (``""``: none)."""

    directory: str
    pool: str = ""

    def path(self, name: str) -> str:
        """The path of a file."""
        return str(PurePosixPath(self.directory) / name)

    def volume(self, name: str) -> str:
        """``pool/volume`` of a file; ``""`` where it lies in no pool."""
        return f"{self.pool}/{name}" if self.pool else ""


def place_for(connection: Any, path: str) -> Place:
    """Where a new image over ``path`` goes: beside it if that is a pool, else into virtd's own pool."""
    directory = str(PurePosixPath(path).parent)
    fallback = None
    for pool in connection.listAllStoragePools(libvirt.VIR_CONNECT_LIST_STORAGE_POOLS_ACTIVE):
        with contextlib.suppress(libvirt.libvirtError):
            xml = PoolXml.parse(pool.XMLDesc(0))
            if xml.kind not in _DIRECTORY_KINDS:
                continue
            if xml.path.rstrip("/") == directory.rstrip("/"):
                return Place(directory, xml.name)
            if xml.name == DEFAULT_POOL:
                fallback = Place(xml.path, xml.name)
    return fallback or Place(directory)


def volume_at(connection: Any, path: str) -> Any:
    """The volume of a file; None where no pool holds it."""
    for attempt in range(2):
        try:
            return connection.storageVolLookupByPath(path)
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_NO_STORAGE_VOL:
                raise
        if not attempt:
            _refresh_pool_of(connection, path)
    return None


def _refresh_pool_of(connection: Any, path: str) -> None:
    place = place_for(connection, path)
    if place.pool and place.directory.rstrip("/") == str(PurePosixPath(path).parent):
        with contextlib.suppress(libvirt.libvirtError):
            connection.storagePoolLookupByName(place.pool).refresh(0)


def volume_name(connection: Any, path: str) -> str:
    """``pool/volume`` of a file; ``""`` where no pool holds it."""
    volume = volume_at(connection, path)
    return "" if volume is None else f"{volume.storagePoolLookupByVolume().name()}/{volume.name()}"


def remove_file(connection: Any, path: str) -> bool:
    """Remove a file by the host's storage; whether it is gone.  Idempotent."""
    volume = volume_at(connection, path)
    if volume is None:
        # Only a pool of its directory knows that it is gone, or this machine's own eyes.
        here = str(PurePosixPath(path).parent)
        return place_for(connection, path).directory.rstrip("/") == here or not Path(path).exists()
    try:
        volume.delete(0)
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_NO_STORAGE_VOL:
            raise
    return True


def make_overlay(connection: Any, place: Place, name: str, below: ImageFile) -> str:
    """An empty qcow2 image over another; its path.  Replaces one of the same name: names are used once."""
    path = place.path(name)
    remove_file(connection, path)
    if place.pool:
        wanted = VolumeXml(name=name, format="qcow2", backing_path=below.path, backing_format=below.format)
        pool = connection.storagePoolLookupByName(place.pool)
        pool.createXML(wanted.to_xml(), 0)
        return path
    qemu_img.create_overlay(path, below.path, below.format)
    return path
