"""Backups: a guest's disks at one moment, read over NBD.

A guest that runs: ``virDomainBackupBegin`` in pull mode.  QEMU serves the disks as they were at that
moment, and what has changed since a checkpoint; what the guest writes meanwhile goes to scratch files
beside the images.  A guest that does not run: qemu-nbd serves each image, read-only and with a lock, so
that nobody starts the guest on images that are being read.

Nothing lives longer than virtd's connection to it: qemu-nbd ends with its only client, and the job of a
virtd that was killed is found by its socket and ended by :meth:`Backups.abort_backup`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import time
from collections.abc import Awaitable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, TypeVar
from uuid import UUID

import libvirt

from virtd.backend.api import CallContext
from virtd.backend.capabilities import BACKUP
from virtd.backend.facets_backup import BackupReader, BackupRequest, DiskRange, SourceDisk
from virtd.errors import (
    BACKEND_ERROR,
    BACKUP_CHAIN_BROKEN,
    INVALID_STATE,
    FailedPreconditionError,
    InternalError,
    NotFoundError,
    VirtdError,
    unsupported,
)
from virtd.libvirt import checkpoints
from virtd.libvirt.connections import LaneName
from virtd.libvirt.guests import Guests, is_active
from virtd.libvirt.nbd import ALLOCATION, DIRTY, ZERO, NbdClosed, NbdError, NbdReader
from virtd.libvirt.xml.backup import BITMAP, BackupDiskXml, DomainBackup, DomainCheckpoint
from virtd.libvirt.xml.build import parse, text
from virtd.libvirt.xml.disk import Disk
from virtd.libvirt.xml.domain import Domain

_T = TypeVar("_T")

_SOCKET_PATH_MAX: Final = 107
_CONNECT_S: Final = 15.0
_POLL_S: Final = 0.02
_END_S: Final = 5.0
_END_JOB_S: Final = 60.0
_LOOKS: Final = 12
_LOOK_S: Final = 0.25
_POWERED_OFF: Final = "the guest was powered off"
_LOST: Final = (libvirt.VIR_ERR_NO_DOMAIN_CHECKPOINT, libvirt.VIR_ERR_CHECKPOINT_INCONSISTENT)


@dataclass(slots=True)
class _Plan:
    """What is to be opened."""

    active: bool
    disks: list[Disk]
    sources: list[SourceDisk]
    checkpoint: str
    no_checkpoint: str
    since: str
    left_out: list[str] = field(default_factory=list)


class Backups:
    """Backups of one host's guests, on this machine.

    :param directory: where sockets are made; one directory a guest in it.
    """

    def __init__(self, guests: Guests, directory: str) -> None:
        self._guests: Final = guests
        self._directory: Final = Path(directory)

    async def open_backup(self, uuid: UUID, request: BackupRequest, context: CallContext) -> BackupReader:
        """Fix the moment and make it readable."""
        context.checkpoint()
        place = self._place(uuid)

        def begin(domain: Any) -> _Plan:
            plan = _plan(domain, request)
            _make_place(place, domain.XMLDesc(0) if plan.active else "")
            if plan.active:
                _begin(domain, plan, str(place / "live"))
            elif plan.checkpoint:
                _mark_stopped(domain, plan)
            return plan

        # No time limit: a job that begins after the caller has given up would be nobody's.
        plan = await self._guests.on_domain(uuid, "virDomainBackupBegin", begin, lane=LaneName.CHANGE, unlimited=True)
        reader = _Reader(self, uuid, plan, place)
        try:
            await reader.connect()
        except BaseException:
            with contextlib.suppress(VirtdError):
                await reader.close()
            raise
        return reader

    async def abort_backup(self, uuid: UUID, context: CallContext) -> None:
        """End what an earlier process of virtd left open.  Idempotent."""
        context.checkpoint()
        await self.end_job(uuid)
        shutil.rmtree(self._place(uuid), ignore_errors=True)

    async def list_checkpoints(self, uuid: UUID) -> Sequence[str]:
        """The marks of virtd's, oldest first."""
        return await self._guests.on_domain(uuid, "virDomainListAllCheckpoints", checkpoints.ours)

    async def delete_checkpoint(self, uuid: UUID, name: str, context: CallContext) -> None:
        """Forget a mark.  Idempotent."""
        context.checkpoint()
        with contextlib.suppress(NotFoundError):
            await self._guests.on_domain(
                uuid,
                "virDomainCheckpointDelete",
                lambda domain: checkpoints.delete(domain, name),
                lane=LaneName.CHANGE,
                unlimited=True,
            )

    async def end_job(self, uuid: UUID) -> None:
        """End the guest's backup job if it is virtd's, and wait until it has ended.

        :raises InternalError: BACKEND_ERROR, it does not end.
        """
        socket = str(self._place(uuid) / "live")

        def there(domain: Any) -> bool:
            return is_active(domain) and _job_socket(domain) == socket

        def abort(domain: Any) -> bool:
            if not there(domain):
                return False
            try:
                domain.abortJob()
            except libvirt.libvirtError:
                if there(domain):
                    raise
            return True

        with contextlib.suppress(NotFoundError):
            left = await self._guests.on_domain(uuid, "virDomainAbortJob", abort)
            deadline = time.monotonic() + _END_JOB_S
            while left:
                # The abort is only asked for: bitmaps are merged, and scratch files removed, after it.
                left = await self._guests.on_domain(uuid, "virDomainBackupGetXMLDesc", there)
                if left and time.monotonic() >= deadline:
                    raise InternalError(BACKEND_ERROR, f"the backup job does not end within {_END_JOB_S:g} s")
                await asyncio.sleep(_POLL_S)

    async def why_lost(self, uuid: UUID) -> str:
        """Why QEMU has closed its connection; empty where that cannot be told.

        QEMU closes it before libvirt knows that it ends.
        """
        socket = str(self._place(uuid) / "live")

        def look(domain: Any) -> str:
            if not is_active(domain):
                return _POWERED_OFF
            return "" if _job_socket(domain) == socket else "the backup job was ended from outside"

        why = ""
        for _ in range(_LOOKS):
            try:
                why = await self._guests.on_domain(uuid, "virDomainGetState", look)
            except NotFoundError:
                return "the guest was deleted"
            if why == _POWERED_OFF:
                break
            await asyncio.sleep(_LOOK_S)
        return why

    def _place(self, uuid: UUID) -> Path:
        return self._directory / uuid.hex[:16]


class _Reader:
    """See :class:`virtd.backend.facets_backup.BackupReader`."""

    def __init__(self, backups: Backups, uuid: UUID, plan: _Plan, place: Path) -> None:
        self._backups = backups
        self._uuid = uuid
        self._plan = plan
        self._place = place
        self._open: dict[str, NbdReader] = {}
        self._processes: list[asyncio.subprocess.Process] = []
        self._closed = False
        self._context: dict[str, str] = {}

    @property
    def disks(self) -> Sequence[SourceDisk]:
        """The disks."""
        return self._plan.sources

    @property
    def left_out(self) -> Sequence[str]:
        """Disks that are not in it."""
        return self._plan.left_out

    @property
    def checkpoint(self) -> str:
        """The mark that was set."""
        return self._plan.checkpoint

    @property
    def no_checkpoint(self) -> str:
        """Why none was set."""
        return self._plan.no_checkpoint

    async def connect(self) -> None:
        """Open every disk."""
        for index, (disk, source) in enumerate(zip(self._plan.disks, self._plan.sources, strict=True)):
            contexts = [ALLOCATION]
            if source.incremental:
                bitmap = BITMAP if self._plan.active else self._plan.since
                self._context[source.name] = f"qemu:dirty-bitmap:{bitmap}"
                contexts.append(self._context[source.name])
            socket = str(self._place / "live")
            if not self._plan.active:
                socket = str(self._place / str(index))
                await self._serve(disk, socket, self._plan.since if source.incremental else "")
            self._open[source.name] = await self._try_connect(socket, disk.target, contexts)

    async def extents(self, disk: str) -> Sequence[DiskRange]:
        """What to read."""
        nbd = self._open[disk]
        allocation = await self._safe(nbd.status(ALLOCATION))
        if disk not in self._context:
            return [DiskRange(offset, length) for offset, length, flags in allocation if not flags & ZERO]
        changes = await self._safe(nbd.status(self._context[disk]))
        dirty = [(offset, length) for offset, length, flags in changes if flags & DIRTY]
        return list(split(dirty, [(offset, length) for offset, length, flags in allocation if flags & ZERO]))

    async def read(self, disk: str, offset: int, length: int) -> bytes:
        """Bytes of a disk."""
        return await self._safe(self._open[disk].read(offset, length))

    async def close(self) -> None:
        """End it.  Idempotent."""
        if self._closed:
            return
        for nbd in self._open.values():
            await nbd.close()
        for process in self._processes:
            await _end(process)
        if self._plan.active:
            await self._backups.end_job(self._uuid)
        self._closed = True
        shutil.rmtree(self._place, ignore_errors=True)

    async def _serve(self, disk: Disk, socket: str, bitmap: str) -> None:
        """Let qemu-nbd serve an image.  It ends with its client, and dies with virtd."""
        command = ["setpriv", "--pdeathsig", "KILL", "qemu-nbd", "--read-only", "--discard=ignore"]
        command += ["--format", disk.format, "--socket", socket, "--export-name", disk.target]
        command += ["--bitmap", bitmap] if bitmap else []
        try:
            self._processes.append(
                await asyncio.create_subprocess_exec(
                    *command,
                    disk.path,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=asyncio.subprocess.DEVNULL,
                    stderr=asyncio.subprocess.PIPE,
                    env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"},
                )
            )
        except FileNotFoundError:
            raise unsupported(
                BACKUP, "backups of guests that do not run need qemu-nbd and setpriv (packages qemu-utils, util-linux)"
            ) from None

    async def _try_connect(self, socket: str, export: str, contexts: Sequence[str]) -> NbdReader:
        try:
            async with asyncio.timeout(_CONNECT_S):
                while True:
                    try:
                        return await NbdReader.connect(socket, export, contexts)
                    except OSError:
                        await self._check_alive()
                        await asyncio.sleep(_POLL_S)
        except TimeoutError:
            raise InternalError(BACKEND_ERROR, f"the disk {export} is not served at {socket}") from None
        except NbdError as error:
            raise await self._failed(error) from error

    async def _check_alive(self) -> None:
        """Raise what a qemu-nbd that has ended has said."""
        for process in self._processes:
            if process.returncode is not None:
                assert process.stderr is not None  # it is a pipe
                said = (await process.stderr.read()).decode(errors="replace").strip()[-300:]
                raise InternalError(BACKEND_ERROR, f"qemu-nbd cannot serve the disk: {said}")

    async def _safe(self, call: Awaitable[_T]) -> _T:
        """Await a call of the NBD reader, as contract errors."""
        try:
            return await call
        except (NbdError, OSError) as error:
            raise await self._failed(error) from error

    async def _failed(self, error: Exception) -> VirtdError:
        if isinstance(error, NbdClosed | ConnectionError) and self._plan.active:
            why = await self._backups.why_lost(self._uuid)
            if why:
                return FailedPreconditionError(
                    INVALID_STATE,
                    f"{why} in the middle of its backup; nothing was kept: back it up again",
                    allowed_actions=("backup", "start"),
                )
        return InternalError(BACKEND_ERROR, f"the disk cannot be read: {error}")


def split(dirty: Sequence[tuple[int, int]], zeros: Sequence[tuple[int, int]]) -> Iterator[DiskRange]:
    """Cut changed ranges where they are known to be zero.  Both ascend."""
    at = 0
    for begin, length in dirty:
        offset, end = begin, begin + length
        while at < len(zeros) and sum(zeros[at]) <= offset:
            at += 1
        index = at
        while offset < end:
            zero_begin, zero_end = (zeros[index][0], sum(zeros[index])) if index < len(zeros) else (end, end)
            if zero_begin > offset:
                yield DiskRange(offset, min(end, zero_begin) - offset)
            if zero_begin < end and zero_end > zero_begin:
                begin_zero = max(offset, zero_begin)
                yield DiskRange(begin_zero, min(end, zero_end) - begin_zero, zero=True)
            offset = max(offset, min(end, zero_end))
            index += 1


def _plan(domain: Any, request: BackupRequest) -> _Plan:
    """Look at the guest and decide; no side effect."""
    domain_xml = Domain.parse(domain.XMLDesc(0))
    active = is_active(domain)
    if active and _job_socket(domain) is not None:
        raise FailedPreconditionError(
            INVALID_STATE, "another backup of this guest is at work; wait for its end, or end it (virsh domjobabort)"
        )
    disks: list[Disk] = []
    sources: list[SourceDisk] = []
    left_out: list[str] = []
    for disk in domain_xml.disks:
        name = domain_xml.metadata.disks.get(disk.target) or disk.target
        if disk.device == "disk" and not disk.read_only:
            disks.append(disk)
            sources.append(_source(domain, disk, name, request))
        elif disk.device == "disk":
            left_out.append(f"disk {name} is read-only and is not in the backup")
    if not disks:
        raise unsupported(BACKUP, "the guest has no disk that it can write to")
    any_tracked = any(source.tracked for source in sources)
    plan = _Plan(
        active,
        disks,
        sources,
        request.checkpoint if any_tracked else "",
        "" if any_tracked else f"no disk's changes can be tracked: {sources[0].reason}",
        request.since,
        left_out,
    )
    if request.since:
        _check_since(domain, plan)
    return plan


def _source(domain: Any, disk: Disk, name: str, request: BackupRequest) -> SourceDisk:
    if disk.kind != "file" or disk.format not in ("qcow2", "raw"):
        raise unsupported(
            BACKUP, f"disk {name} is a {disk.kind} of format {disk.format or 'unknown'}, not a qcow2 or raw file"
        )
    capacity = int(domain.blockInfo(disk.target, 0)[0])
    known = next((entry for entry in request.expected if entry.name == name), None) if request.since else None
    if known is not None and known.identity != disk.path:
        raise _broken(f"disk {name} is another file now: {disk.path}, not {known.identity}")
    if known is not None and known.capacity_bytes != capacity:
        raise _broken(f"disk {name} was resized from {known.capacity_bytes} to {capacity} bytes")
    tracked = checkpoints.has_disk(disk)
    reason = "" if tracked else checkpoints.why_not(disk)
    if request.since and known is None and tracked:
        reason = "it was not there, or not tracked, when the parent was made"
    return SourceDisk(name, disk.path, disk.format, capacity, known is not None, tracked, reason)


def _check_since(domain: Any, plan: _Plan) -> None:
    known = checkpoints.names(domain)
    if plan.since not in known:
        raise _broken(f"the host no longer has the checkpoint {plan.since}")
    if plan.active:
        return  # the host checks the bitmaps itself
    if known[-1] != plan.since:
        raise _broken(f"{known[-1]} was set after the checkpoint {plan.since}, and the guest does not run")
    for disk, source in zip(plan.disks, plan.sources, strict=True):
        if source.incremental and not checkpoints.bitmaps(disk.path).get(plan.since):
            raise _broken(f"the record of changes in {disk.path} is lost (its QEMU was killed, or it was replaced)")


def _begin(domain: Any, plan: _Plan, socket: str) -> None:
    if len(socket) > _SOCKET_PATH_MAX:
        raise unsupported(
            BACKUP, f"the path {socket} is too long for a socket; give virtd a state directory with a shorter name"
        )
    suffix = f".{plan.checkpoint or 'virtd'}.scratch"
    chosen = {
        disk.target: BackupDiskXml(disk.target, disk.path + suffix, plan.since if source.incremental else "")
        for disk, source in zip(plan.disks, plan.sources, strict=True)
    }
    everything = Domain.parse(domain.XMLDesc(0)).disks
    backup = DomainBackup(socket, tuple(chosen.get(disk.target, BackupDiskXml(disk.target)) for disk in everything))
    tracked = {disk.target for disk in plan.disks if checkpoints.has_disk(disk)}
    marks = DomainCheckpoint(plan.checkpoint, tuple((disk.target, disk.target in tracked) for disk in everything))
    try:
        domain.backupBegin(backup.to_xml(), marks.to_xml() if plan.checkpoint else None, 0)
    except libvirt.libvirtError as error:
        code = error.get_error_code()
        if plan.since and code in _LOST:
            raise _broken(f"the record of changes is lost (QEMU was killed?): {error.get_error_message()}") from error
        if plan.since or not plan.checkpoint or code not in (*_LOST, libvirt.VIR_ERR_OPERATION_UNSUPPORTED):
            raise
        # A full backup is possible where a mark is not.
        domain.backupBegin(backup.to_xml(), None, 0)
        plan.no_checkpoint, plan.checkpoint = f"the host refuses a checkpoint: {error.get_error_message()}", ""
        plan.sources = [replace(source, tracked=False) for source in plan.sources]


def _mark_stopped(domain: Any, plan: _Plan) -> None:
    tracked = [disk for disk in plan.disks if checkpoints.has_disk(disk)]
    try:
        checkpoints.add_offline(domain, plan.checkpoint, tracked, plan.since)
    except (libvirt.libvirtError, InternalError) as error:
        plan.no_checkpoint, plan.checkpoint = f"no checkpoint can be set: {error}", ""
        plan.sources = [replace(source, tracked=False) for source in plan.sources]


def _broken(why: str) -> FailedPreconditionError:
    return FailedPreconditionError(BACKUP_CHAIN_BROKEN, why)


def _job_socket(domain: Any) -> str | None:
    """The socket of the guest's backup job, empty for one that is served otherwise; None: there is no job."""
    try:
        return DomainBackup.parse(domain.backupGetXMLDesc(0)).socket
    except libvirt.libvirtError as error:
        if error.get_error_code() in (libvirt.VIR_ERR_NO_DOMAIN_BACKUP, libvirt.VIR_ERR_OPERATION_INVALID):
            return None
        raise


def _make_place(place: Path, domain_xml: str) -> None:
    """A directory for sockets that QEMU may write to and nobody else may enter.

    :raises UnsupportedError: QEMU runs as another user, and virtd is not root.
    """
    shutil.rmtree(place, ignore_errors=True)
    place.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
    place.mkdir(mode=0o700)
    label = text(parse(domain_xml), "seclabel[@model='dac']/label") if domain_xml else ""
    owner = label.partition(":")[0].removeprefix("+")
    if not owner.isdecimal() or int(owner) in (0, os.geteuid()):
        return
    if os.geteuid() != 0:
        place.rmdir()
        raise unsupported(BACKUP, f"QEMU runs as user {owner}, whose sockets only root may use; run virtd as root")
    os.chown(place, int(owner), -1)


async def _end(process: asyncio.subprocess.Process) -> None:
    """It has lost its client, and ends by itself."""
    try:
        async with asyncio.timeout(_END_S):
            await process.wait()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
