"""External snapshots: made by libvirt; reverted to and deleted by virtd.

libvirt 9.0 cannot revert to one (it fails with code 67), and deletes without looking (virt-manager's
issue 811 lost the parent image).

Every function blocks, on a worker thread.  Those that change something are given what a plan function
has decided, as text that the core has journalled: after a crash they are called again with the same
text, whatever of it was done.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Final
from uuid import UUID, uuid4

import libvirt

from virtd.backend.capabilities import SNAPSHOT
from virtd.backend.facets_snapshots import SnapshotPlan, SnapshotRequest
from virtd.errors import (
    BACKEND_ERROR,
    SNAPSHOT_BLOCKED,
    SNAPSHOT_CHAIN_BROKEN,
    SNAPSHOT_MIXED,
    FailedPreconditionError,
    InternalError,
    unsupported,
)
from virtd.libvirt import qemu_img
from virtd.libvirt.guests import is_active
from virtd.libvirt.snapshot_choice import writable
from virtd.libvirt.snapshot_files import (
    Images,
    in_use,
    make_overlay,
    overlay_prefix,
    place_for,
    read,
    real,
    refuse_blocked,
    remove_file,
    volume_name,
    with_users,
)
from virtd.libvirt.snapshot_layers import InUseError, after, deletion
from virtd.libvirt.xml.build import parse
from virtd.libvirt.xml.domain import Domain
from virtd.libvirt.xml.snapshot import (
    DomainSnapshot,
    ImageFile,
    chains_of,
    definition_in,
    files_of,
    with_files,
    with_frozen,
    with_overlays,
)
from virtd.model.snapshot import EXTERNAL, SnapshotKind

SECURE: Final = libvirt.VIR_DOMAIN_SNAPSHOT_XML_SECURE
_DEFINITION: Final = libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE
_POLL_S: Final = 0.1

Report = Callable[[float], None]
"""Told how far the work is, 0..1; on the worker's thread."""


# --------------------------------------------------------------------------------------- create


@dataclass(frozen=True, slots=True)
class _Creation:
    overlays: dict[str, str] = field(default_factory=dict)
    memory_file: str = ""


def plan_create(domain: Any, request: SnapshotRequest, reason: str) -> SnapshotPlan:
    """Choose the names of the new files."""
    connection, uuid = domain.connect(), UUID(domain.UUIDString())
    tail = f"{request.name}-{uuid4().hex[:6]}"
    overlays, volumes, memory_file = {}, [], ""
    for disk in writable(Domain.parse(domain.XMLDesc(0))):
        place, name = place_for(connection, disk.path), f"{overlay_prefix(uuid)}{disk.target}.{tail}.qcow2"
        overlays[disk.target] = place.path(name)
        volumes.append(place.volume(name))
        if request.memory and not memory_file:
            name = f"{overlay_prefix(uuid)}memory.{tail}"
            memory_file = place.path(name)
            volumes.append(place.volume(name))
    return SnapshotPlan(
        location=EXTERNAL,
        reason=reason,
        kind=SnapshotKind.DISK_AND_MEMORY if request.memory else SnapshotKind.DISK,
        volumes=tuple(volume for volume in volumes if volume),
        detail=json.dumps(asdict(_Creation(overlays, memory_file))),
    )


def create(domain: Any, request: SnapshotRequest, plan: SnapshotPlan) -> Any:
    """Take it; all or nothing."""
    made = _Creation(**json.loads(plan.detail))
    connection, active = domain.connect(), is_active(domain)
    # Of this very plan: its names are used once.  What a crash left was never written to.
    _remove_unused(domain, (*made.overlays.values(), made.memory_file))
    now = Domain.parse(domain.XMLDesc(0))
    wanted = DomainSnapshot(
        request.name,
        request.description,
        external=True,
        memory_file=made.memory_file,
        overlays=made.overlays,
        untouched=tuple(disk.target for disk in now.disks if disk.target not in made.overlays),
    )
    flags = libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_ATOMIC
    if made.memory_file:
        flags |= libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_LIVE
    else:
        flags |= libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY
        if request.quiesce and active:
            flags |= libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_QUIESCE
    try:
        snapshot = domain.snapshotCreateXML(wanted.to_xml(), flags)
    except libvirt.libvirtError:
        with contextlib.suppress(libvirt.libvirtError):
            _remove_unused(domain, (*made.overlays.values(), made.memory_file))
        raise
    for path in made.overlays.values():
        volume_name(connection, path)  # the pool learns of it
    return snapshot


def _remove_unused(domain: Any, paths: tuple[str, ...]) -> None:
    used = {path for chain in chains_of(domain.XMLDesc(0)).values() for path in chain}
    used |= {image.path for image in files_of(parse(domain.XMLDesc(_DEFINITION))).values()}
    for path in paths:
        if path and path not in used:
            remove_file(domain.connect(), path)


# --------------------------------------------------------------------------------------- revert


@dataclass(frozen=True, slots=True)
class _Reversion:
    overlays: dict[str, str] = field(default_factory=dict)
    below: dict[str, list[str]] = field(default_factory=dict)
    before: dict[str, list[str]] = field(default_factory=dict)
    garbage: list[str] = field(default_factory=list)


def plan_revert(domain: Any, name: str, *, here: bool) -> SnapshotPlan:
    """Choose the names of the new images, and find out which of the present ones nobody needs then."""
    connection, uuid = domain.connect(), UUID(domain.UUIDString())
    images = with_users(read(connection, domain, here=here), connection, domain)
    images.check()
    refuse_blocked(domain, images.forest.active, checkpoints=True)
    _refuse_mixed(images, "reverting to one")
    overlays, volumes = {}, []
    tail = f"{name}-{uuid4().hex[:6]}"
    for target, path in images.forest.frozen[name].items():
        place = place_for(connection, images.image(path).path)
        file = f"{overlay_prefix(uuid)}{target}.{tail}.qcow2"
        overlays[target] = place.path(file)
        volumes.append(place.volume(file))
    garbage = [
        path
        for path in images.forest.active.values()
        if path in images.forest.overlays and not images.forest.users.get(path)
    ]
    plan = _Reversion(
        overlays,
        {target: _pair(images.image(path)) for target, path in images.forest.frozen[name].items()},
        {target: _pair(images.image(path)) for target, path in images.forest.active.items()},
        garbage,
    )
    return SnapshotPlan(
        location=EXTERNAL,
        reason="new images are put over those that the snapshot keeps; libvirt itself cannot revert to it",
        volumes=tuple(volume for volume in volumes if volume),
        removed=tuple(filter(None, (volume_name(connection, path) for path in garbage))),
        detail=json.dumps(asdict(plan)),
    )


def revert(domain: Any, snapshot: Any, plan: SnapshotPlan) -> None:
    """Put new images over the frozen ones, and memory back where it was kept.

    Nothing is written to what any snapshot keeps.  Where it fails the guest has its former images again
    (stopped).
    """
    todo = _Reversion(**json.loads(plan.detail))
    connection = domain.connect()
    snapshot_xml = snapshot.getXMLDesc(SECURE)
    seen = DomainSnapshot.parse(snapshot_xml)
    if is_active(domain):
        domain.destroy()
    if domain.hasManagedSaveImage(0):
        domain.managedSaveRemove(0)  # it belongs to images that are given up here
    new = {target: ImageFile(path, "qcow2") for target, path in todo.overlays.items()}
    try:
        for target, path in todo.overlays.items():
            place = place_for(connection, path)
            make_overlay(connection, place, PurePosixPath(path).name, ImageFile(*todo.below[target]))
        connection.defineXML(with_files(definition_in(snapshot_xml), new))
        if seen.memory_file:
            saved = parse(connection.saveImageGetXMLDesc(seen.memory_file, libvirt.VIR_DOMAIN_SAVE_IMAGE_XML_SECURE))
            state = libvirt.VIR_DOMAIN_SAVE_PAUSED if seen.state == "paused" else libvirt.VIR_DOMAIN_SAVE_RUNNING
            connection.restoreFlags(seen.memory_file, with_files(saved, new), state)
    except BaseException:
        _back(domain, todo)
        raise
    redefine(domain, with_overlays(snapshot_xml, todo.overlays), current=True)
    for path in todo.garbage:
        remove_file(connection, path)


def _back(domain: Any, todo: _Reversion) -> None:
    """The former images again: the guest is stopped, and nothing of them was changed."""
    with contextlib.suppress(libvirt.libvirtError):
        if is_active(domain):
            domain.destroy()
    former = {target: ImageFile(*pair) for target, pair in todo.before.items()}
    domain.connect().defineXML(with_files(parse(domain.XMLDesc(_DEFINITION)), former))
    with contextlib.suppress(libvirt.libvirtError):
        _remove_unused(domain, tuple(todo.overlays.values()))


# --------------------------------------------------------------------------------------- delete


@dataclass(frozen=True, slots=True)
class _Merge:
    base: list[str]
    top: list[str]
    children: list[str]


@dataclass(frozen=True, slots=True)
class _Removal:
    merges: list[_Merge] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    renamed: dict[str, list[str]] = field(default_factory=dict)
    memory_file: str = ""
    expected: dict[str, list[str]] = field(default_factory=dict)
    """Target -> the chain as it must be afterwards (real paths)."""
    records: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    """Snapshot -> target -> the image that it must keep afterwards."""


def plan_delete(domain: Any, name: str, *, here: bool) -> SnapshotPlan:
    """Which images are merged and which are removed."""
    connection = domain.connect()
    if domain.hasManagedSaveImage(0):
        raise FailedPreconditionError(
            SNAPSHOT_BLOCKED,
            "the guest is suspended to disk, and its saved state names the images that would be merged; start it first",
            allowed_actions=("start",),
        )
    images = with_users(read(connection, domain, here=here), connection, domain)
    images.check()
    refuse_blocked(domain, images.forest.active, checkpoints=True)
    try:
        todo = deletion(images.forest, name)
    except InUseError as error:
        raise in_use(error) from error
    live = {path for chain in images.live.values() for path in chain}
    for merge in todo.merges:
        inside = images.layers[merge.top].snapshots
        if inside:
            raise FailedPreconditionError(
                SNAPSHOT_MIXED,
                f"{merge.top} would be merged, and the internal snapshots in it ({', '.join(inside[:5])}) be lost; "
                "delete them first",
            )
        if not images.local and not {merge.top, *merge.children} <= live:
            raise unsupported(
                SNAPSHOT,
                "virtd cannot work on the host's image files itself, and libvirt merges only what a running guest "
                "uses: start the guest first, or run virtd on the host with access to them",
            )
    expected, renamed = after(images.forest, name, todo), todo.renamed
    snapshot = next(found for found in images.snapshots if found.name == name)
    plan = _Removal(
        merges=[
            _Merge(_pair(images.image(m.base)), _pair(images.image(m.top)), [images.image(c).path for c in m.children])
            for m in todo.merges
        ],
        removed=[images.image(path).path for path in todo.removed],
        renamed={images.image(top).path: _pair(images.image(base)) for top, base in todo.renamed.items()},
        memory_file=snapshot.memory_file,
        expected={target: [path, *expected.below(path)] for target, path in expected.active.items()},
        records={
            other: {target: _pair(images.image(renamed.get(path, path))) for target, path in kept.items()}
            for other, kept in images.forest.frozen.items()
            if other != name
        },
    )
    gone = [*todo.gone, *([snapshot.memory_file] if snapshot.memory_file else [])]
    merged = f"{len(todo.merges)} images are merged, {len(gone)} files removed"
    return SnapshotPlan(
        location=EXTERNAL,
        reason=merged + (f"; {', '.join(todo.shared)} stays: several images need it" if todo.shared else ""),
        removed=tuple(filter(None, (volume_name(connection, path) for path in gone))),
        detail=json.dumps(asdict(plan)),
    )


def delete(domain: Any, name: str, plan: SnapshotPlan, report: Report, *, here: bool) -> None:
    """Merge, forget, correct the records, look again at what is on the disks, remove.

    :raises FailedPreconditionError: SNAPSHOT_CHAIN_BROKEN: somebody else changed the images meanwhile.
    """
    todo = _removal(plan)
    snapshot = next((found for found in domain.listAllSnapshots(0) if found.getName() == name), None)
    if snapshot is not None:
        for number, merge in enumerate(todo.merges):
            _merge(domain, merge, _share_of(report, number, len(todo.merges)))
        _correct_definition(domain, {top: ImageFile(*pair) for top, pair in todo.renamed.items()})
        snapshot.delete(libvirt.VIR_DOMAIN_SNAPSHOT_DELETE_METADATA_ONLY)
    # Only now: forgetting one, libvirt writes the image *below* into its children's records (9.0).
    _correct_records(domain, todo.records)
    images = read(domain.connect(), domain, here=here)
    images.check()
    actual = {target: [path, *images.forest.below(path)] for target, path in images.forest.active.items()}
    if any(actual.get(target) != chain for target, chain in todo.expected.items()):
        raise FailedPreconditionError(
            SNAPSHOT_CHAIN_BROKEN,
            "the images are not what they should be after the merge; no file was removed",
            metadata={"chain_on_disk": images.on_disk(), "chain_in_records": json.dumps(todo.expected)},
        )
    needed = set(images.forest.backing) | {found.memory_file for found in images.snapshots}
    for path in (*(merge.top[0] for merge in todo.merges), *todo.removed, todo.memory_file):
        if path and path not in needed and real(path, here=here) not in needed:
            remove_file(domain.connect(), path)


def _correct_definition(domain: Any, renamed: Mapping[str, ImageFile]) -> None:
    definition = parse(domain.XMLDesc(_DEFINITION))
    stale = {target: renamed[image.path] for target, image in files_of(definition).items() if image.path in renamed}
    if stale:
        domain.connect().defineXML(with_files(definition, stale))


def _correct_records(domain: Any, records: Mapping[str, Mapping[str, list[str]]]) -> None:
    for snapshot in domain.listAllSnapshots(0):
        wanted = {target: ImageFile(*pair) for target, pair in records.get(snapshot.getName(), {}).items()}
        text = snapshot.getXMLDesc(SECURE)
        if wanted and dict(DomainSnapshot.parse(text).frozen) != wanted:
            redefine(domain, with_frozen(text, wanted), current=bool(snapshot.isCurrent(0)))


def _removal(plan: SnapshotPlan) -> _Removal:
    told = json.loads(plan.detail)
    return _Removal(**{**told, "merges": [_Merge(**entry) for entry in told["merges"]]})


def _share_of(report: Report, number: int, count: int) -> Report:
    return lambda share: report((number + share) / count)


def _merge(domain: Any, merge: _Merge, report: Report) -> None:
    """Bring ``top``'s content into ``base`` and put its children over that.  Idempotent."""
    base, top = ImageFile(*merge.base), ImageFile(*merge.top)
    while (target := _live_target(domain, top.path)) is not None:
        _merge_live(domain, target, merge, report)
    live = {path for chain in chains_of(domain.XMLDesc(0)).values() for path in chain} if is_active(domain) else set()
    using = {image.path for image in files_of(parse(domain.XMLDesc(_DEFINITION))).values()}
    waiting = [child for child in merge.children if child not in live and _backing(child) == os.path.realpath(top.path)]
    for snapshot in domain.listAllSnapshots(0):
        using |= {image.path for image in DomainSnapshot.parse(snapshot.getXMLDesc(0)).frozen.values()}
    # Done already where nothing refers to it any more: then the base may have been written to since.
    if top.path in using or waiting:
        if base.path not in live:
            qemu_img.commit(top.path, top.format, report)
        for child in waiting:
            qemu_img.rebase(child, base.path, base.format)


def _backing(path: str) -> str:
    if not Path(path).exists():
        return ""
    try:
        return qemu_img.chain(path, "qcow2")[0].backing
    except qemu_img.UnreadableChainError as error:
        raise InternalError(BACKEND_ERROR, f"{path} cannot be read: {error}") from error


def _live_target(domain: Any, path: str) -> str | None:
    """The disk of the running guest in whose chain an image is."""
    if not is_active(domain):
        return None
    for target, chain in chains_of(domain.XMLDesc(0)).items():
        if path in chain:
            return target
    return None


def _merge_live(domain: Any, target: str, merge: _Merge, report: Report) -> None:
    try:
        if not domain.blockJobInfo(target, 0):
            top = merge.top[0]
            active = chains_of(domain.XMLDesc(0))[target][0] == top
            flags = libvirt.VIR_DOMAIN_BLOCK_COMMIT_ACTIVE if active else 0
            domain.blockCommit(target, merge.base[0], top, 0, flags)
        _wait_for_job(domain, target, report)
    except libvirt.libvirtError:
        if is_active(domain):
            raise
        return  # it has stopped meanwhile: the files are free, and are merged as such
    if merge.top[0] in chains_of(domain.XMLDesc(0)).get(target, ()) and is_active(domain):
        raise InternalError(BACKEND_ERROR, f"the merge of {merge.top[0]} ended without effect; nothing is lost")


def _wait_for_job(domain: Any, target: str, report: Report) -> None:
    while job := domain.blockJobInfo(target, 0):
        if job["end"]:
            report(min(1.0, job["cur"] / job["end"]))
        ready = parse(domain.XMLDesc(0)).find(f"devices/disk/target[@dev='{target}']/../mirror[@ready='yes']")
        if ready is not None:
            domain.blockJobAbort(target, libvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT)
            continue
        time.sleep(_POLL_S)


def redefine(domain: Any, snapshot_xml: str, *, current: bool) -> None:
    """Write a snapshot's record anew."""
    flags = libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE
    if current:
        flags |= libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_CURRENT
    domain.snapshotCreateXML(snapshot_xml, flags)


def _refuse_mixed(images: Images, what: str) -> None:
    inside = [snapshot.name for snapshot in images.snapshots if not snapshot.external]
    if inside:
        raise FailedPreconditionError(
            SNAPSHOT_MIXED,
            f"the guest has internal snapshots too ({', '.join(inside[:5])}); {what} is not safe with both kinds",
            metadata={"others": ",".join(inside)},
        )


def _pair(image: ImageFile) -> list[str]:
    return [image.path, image.format]
