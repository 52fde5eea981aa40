"""Create, resize, clone, fill and delete volumes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

from virtd.backend import capabilities as cap
from virtd.backend.api import VolumeChangeFacet, VolumeRequest, VolumeTransferFacet
from virtd.errors import (
    ETAG_MISMATCH,
    VOLUME_EXISTS,
    VOLUME_NOT_FOUND,
    AlreadyExistsError,
    ConflictError,
    NotFoundError,
    unsupported,
)
from virtd.inventory import HostLink
from virtd.model.guest import DiskFormat
from virtd.model.storage import Preallocation
from virtd.operations import Outcome, Run, Step, Verb
from virtd.service.core import Core
from virtd.service.uploads import Uploads
from virtd.service.verbs.base import patience

if TYPE_CHECKING:
    from virtd.service.storage import Storage

COPY_S: Final = 24 * 3600.0
"""How long a copy or a transfer may take, unless another time is configured: disks are large."""


@dataclass(frozen=True, slots=True)
class VolumeArguments:
    """Which volume, and for a new one what it is."""

    host: str
    pool: str
    volume: str
    capacity_bytes: int = 0
    format: DiskFormat = DiskFormat.QCOW2
    preallocation: Preallocation = Preallocation.NONE

    @property
    def name(self) -> str:
        """Its resource name."""
        return f"hosts/{self.host}/pools/{self.pool}/volumes/{self.volume}"


@dataclass(frozen=True, slots=True)
class ResizeArguments(VolumeArguments):
    """``capacity_bytes`` is the new size."""

    allow_shrink: bool = False


@dataclass(frozen=True, slots=True)
class CloneArguments(VolumeArguments):
    """``volume`` in ``pool`` is the new one; ``converts``: the host makes the copy, which cannot be aborted."""

    source_pool: str = ""
    source: str = ""
    converts: bool = False


@dataclass(frozen=True, slots=True)
class UploadArguments(VolumeArguments):
    """``volume`` is made of this upload."""

    upload_id: str = ""
    digest: str = ""


V = TypeVar("V", bound=VolumeArguments)


class VolumeVerb(Verb[V]):
    """A verb that works on one volume and answers with it."""

    def __init__(self, core: Core, storage: Storage) -> None:
        self.core = core
        self.storage = storage

    def link(self, run: Run[V]) -> HostLink:
        """The link of the volume's host."""
        return self.core.link(run.arguments.host)

    def changes(self, run: Run[V], capability: str) -> VolumeChangeFacet:
        """What changes volumes."""
        facet = self.link(run).facets.volume_changes
        if facet is None:
            raise unsupported(capability, "the host does not offer it", resource=f"hosts/{run.arguments.host}")
        return facet

    async def finish(self, run: Run[V]) -> Outcome:
        """The volume."""
        arguments = run.arguments
        volume = await self.storage.get_volume(arguments.host, arguments.pool, arguments.volume)
        return Outcome(volume.name, volume)


class MakingVerb(VolumeVerb[V]):
    """A verb that makes a volume.

    After the check, what is there under its name was begun by this very operation.
    """

    async def check(self, run: Run[V]) -> None:
        """Refuse a name that is taken."""
        arguments = run.arguments
        try:
            await self.storage.get_volume(arguments.host, arguments.pool, arguments.volume)
        except NotFoundError as error:
            if error.reason is VOLUME_NOT_FOUND:
                return
            raise
        raise AlreadyExistsError(
            VOLUME_EXISTS, f"pool {arguments.pool} has a volume {arguments.volume} already", resource=arguments.name
        )

    async def begin_again(self, run: Run[V]) -> None:
        """After a crash, remove what was made by then."""
        if run.repeated:
            await self._delete(run)

    async def undo(self, run: Run[V]) -> None:
        """Remove it, if it is ours."""
        error = run.operation.error
        if error is not None and error.reason == VOLUME_EXISTS.name:
            return  # somebody else's
        await self._delete(run)

    async def _delete(self, run: Run[V]) -> None:
        facet, arguments = self.storage.facet(run.arguments.host), run.arguments
        await self.link(run).call(facet.delete_volume(arguments.pool, arguments.volume, run))


class CreateVolume(MakingVerb[VolumeArguments]):
    """An empty volume."""

    name = "volume-create"

    @property
    def arguments(self) -> type[VolumeArguments]:
        """Journalled."""
        return VolumeArguments

    def steps(self, arguments: VolumeArguments) -> Sequence[Step[VolumeArguments]]:
        """Check, create."""
        return [Step("check", self.check, weight=0.1), Step("create", self._do, undo=self.undo)]

    async def _do(self, run: Run[VolumeArguments]) -> None:
        arguments = run.arguments
        await self.begin_again(run)
        request = VolumeRequest(
            arguments.pool,
            arguments.volume,
            arguments.format,
            capacity_bytes=arguments.capacity_bytes,
            preallocation=arguments.preallocation,
        )
        facet = self.storage.facet(arguments.host)
        await self.link(run).call(facet.create_volume(request, run), timeout_s=patience(run))


class DeleteVolume(VolumeVerb[VolumeArguments]):
    """Checked once more when its turn comes."""

    name = "volume-delete"

    @property
    def arguments(self) -> type[VolumeArguments]:
        """Journalled."""
        return VolumeArguments

    def steps(self, arguments: VolumeArguments) -> Sequence[Step[VolumeArguments]]:
        """One step, idempotent."""
        return [Step("delete", self._do, cancellable=False)]

    async def _do(self, run: Run[VolumeArguments]) -> None:
        arguments = run.arguments
        try:
            await self.storage.unused(arguments.host, arguments.pool, arguments.volume)
        except NotFoundError:
            return
        facet = self.storage.facet(arguments.host)
        await self.link(run).call(facet.delete_volume(arguments.pool, arguments.volume, run))

    async def finish(self, run: Run[VolumeArguments]) -> Outcome:
        """Nothing is left to show."""
        return Outcome()


class ResizeVolume(VolumeVerb[ResizeArguments]):
    """Checked once more when its turn comes."""

    name = "volume-resize"

    @property
    def arguments(self) -> type[ResizeArguments]:
        """Journalled."""
        return ResizeArguments

    def steps(self, arguments: ResizeArguments) -> Sequence[Step[ResizeArguments]]:
        """One step, idempotent: what was cut off cannot be brought back."""
        return [Step("resize", self._do, cancellable=False)]

    async def _do(self, run: Run[ResizeArguments]) -> None:
        arguments = run.arguments
        await self.storage.resizable(
            arguments.host,
            arguments.pool,
            arguments.volume,
            arguments.capacity_bytes,
            allow_shrink=arguments.allow_shrink,
        )
        facet = self.changes(run, cap.VOLUME_RESIZE)
        work = facet.resize_volume(
            arguments.pool, arguments.volume, arguments.capacity_bytes, run, allow_shrink=arguments.allow_shrink
        )
        await self.link(run).call(work, timeout_s=patience(run))


class CloneVolume(MakingVerb[CloneArguments]):
    """A volume that stands alone, with the content of another."""

    name = "volume-clone"

    @property
    def arguments(self) -> type[CloneArguments]:
        """Journalled."""
        return CloneArguments

    def timeout_s(self, arguments: CloneArguments) -> float:
        """Disks are large."""
        return COPY_S

    def steps(self, arguments: CloneArguments) -> Sequence[Step[CloneArguments]]:
        """Check, copy."""
        return [
            Step("check", self.check, weight=0.1),
            Step("copy", self._do, undo=self.undo, weight=20, cancellable=not arguments.converts),
        ]

    async def _do(self, run: Run[CloneArguments]) -> None:
        arguments, link = run.arguments, self.link(run)
        await self.begin_again(run)
        await self.storage.quiet(arguments.host, arguments.source_pool, arguments.source, "be cloned")
        before = await self._etag(run)
        work = self.changes(run, cap.VOLUME_CLONE).clone_volume(
            arguments.source_pool, arguments.source, arguments.pool, arguments.volume, arguments.format, run
        )
        await link.call(work, timeout_s=patience(run))
        if await self._etag(run) != before:
            raise ConflictError(
                ETAG_MISMATCH,
                f"the volume {arguments.source} was changed while it was copied, so that the copy is not sound",
                resource=f"hosts/{arguments.host}/pools/{arguments.source_pool}/volumes/{arguments.source}",
            )

    async def _etag(self, run: Run[CloneArguments]) -> str:
        """The source's state, where the host tells; libvirt does not keep a guest from starting meanwhile."""
        link = self.link(run)
        facet = link.facets.volume_transfer
        if facet is None:
            return ""
        return (await link.call(facet.volume_content(run.arguments.source_pool, run.arguments.source))).etag


class UploadVolume(MakingVerb[UploadArguments]):
    """Make a volume of an upload: checked here, then sent to the host."""

    name = "volume-upload"

    def __init__(self, core: Core, storage: Storage, uploads: Uploads) -> None:
        super().__init__(core, storage)
        self._uploads = uploads

    @property
    def arguments(self) -> type[UploadArguments]:
        """Journalled."""
        return UploadArguments

    def timeout_s(self, arguments: UploadArguments) -> float:
        """Disks are large."""
        return COPY_S

    def steps(self, arguments: UploadArguments) -> Sequence[Step[UploadArguments]]:
        """When it fails, the upload is there as before."""
        return [
            Step("claim", self._claim, undo=self._release, weight=0.1),
            Step("verify", self._verify, weight=5),
            Step("check", self.check, weight=0.1),
            Step("send", self._send, undo=self.undo, weight=20),
            Step("forget", self._forget, cancellable=False, weight=0.1),
        ]

    async def _claim(self, run: Run[UploadArguments]) -> None:
        await self._uploads.begin_commit(run.arguments.upload_id, run.operation.name)

    async def _release(self, run: Run[UploadArguments]) -> None:
        await self._uploads.end_commit(run.arguments.upload_id, run.operation.name)

    async def _verify(self, run: Run[UploadArguments]) -> None:
        run.scratch["digest"] = await self._uploads.verify(run, run.arguments.upload_id, run.arguments.digest)

    async def _send(self, run: Run[UploadArguments]) -> None:
        arguments, link = run.arguments, self.link(run)
        await self.begin_again(run)
        work = self._transfer(run).upload_volume(
            arguments.pool, arguments.volume, str(self._uploads.path(arguments.upload_id)), arguments.format, run
        )
        await link.call(work, timeout_s=patience(run))

    def _transfer(self, run: Run[UploadArguments]) -> VolumeTransferFacet:
        facet = self.link(run).facets.volume_transfer
        if facet is None:
            raise unsupported(cap.VOLUME_TRANSFER, "the host does not offer it", resource=f"hosts/{run.arguments.host}")
        return facet

    async def _forget(self, run: Run[UploadArguments]) -> None:
        await self._uploads.remove(run.arguments.upload_id)
