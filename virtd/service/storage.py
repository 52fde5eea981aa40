"""Use cases of volumes, and the reading ones of pools."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from virtd.backend import capabilities as cap
from virtd.backend.api import StorageFacet
from virtd.errors import (
    POOL_NOT_FOUND,
    SHRINK_REFUSED,
    STORAGE_FULL,
    VOLUME_EXISTS,
    VOLUME_IN_USE,
    VOLUME_NOT_FOUND,
    AlreadyExistsError,
    FailedPreconditionError,
    NotFoundError,
    ResourceExhaustedError,
    unsupported,
)
from virtd.model.guest import DiskFormat, GuestState
from virtd.model.names import check_new_id, parse
from virtd.model.operation import Operation
from virtd.model.storage import Pool, PoolState, Preallocation, Volume
from virtd.model.upload import Upload, UploadKind
from virtd.service.call import Call, Page, page_of
from virtd.service.core import Core, is_local, once, submission
from virtd.service.uploads import Uploads
from virtd.service.validate import Violations, check_capacity
from virtd.service.verbs.volumes import (
    CloneArguments,
    CloneVolume,
    CreateVolume,
    DeleteVolume,
    ResizeArguments,
    ResizeVolume,
    UploadArguments,
    UploadVolume,
    VolumeArguments,
)

VOLUME_NAME: Final = "hosts/{host}/pools/{pool}/volumes/{volume}"
_IDLE: Final = frozenset({GuestState.STOPPED, GuestState.CRASHED})
"""In these states of a guest its disks do not change.  A suspended one expects them as it left them."""


class Storage:
    """Use cases of volumes, and the reading ones of pools."""

    def __init__(self, core: Core, uploads: Uploads) -> None:
        self._core = core
        self._create = CreateVolume(core, self)
        self._delete = DeleteVolume(core, self)
        self._resize = ResizeVolume(core, self)
        self._clone = CloneVolume(core, self)
        self._upload = UploadVolume(core, self, uploads)
        for verb in (self._create, self._delete, self._resize, self._clone, self._upload):
            core.engine.register(verb)
        uploads.register(UploadKind.VOLUME, self)

    def facet(self, host: str, capability: str = cap.VOLUMES) -> StorageFacet:
        """The host's storage.

        :raises UnsupportedError: CAPABILITY_UNSUPPORTED.
        :raises UnavailableError: HOST_UNREACHABLE.
        """
        link = self._core.link(host)
        cap.require(link.capabilities, capability, resource=f"hosts/{host}")
        facet = link.facets.storage
        if facet is None:
            raise unsupported(capability, "the host offers no storage", resource=f"hosts/{host}")
        return facet

    async def get_pool(self, host: str, pool: str) -> Pool:
        """A pool.

        :raises NotFoundError: POOL_NOT_FOUND.
        """
        name = f"hosts/{host}/pools/{pool}"
        for entry in await self.all_pools(host):
            if entry.name == name:
                return entry
        raise NotFoundError(POOL_NOT_FOUND, f"host {host} has no pool {pool}", resource=name)

    async def list_pools(self, host: str, page_size: int, page_token: str) -> Page[Pool]:
        """The pools of a host, by name."""
        return page_of(await self.all_pools(host), page_size, page_token, lambda pool: pool.name)

    async def get_volume(self, host: str, pool: str, volume: str) -> Volume:
        """A volume.

        :raises NotFoundError: POOL_NOT_FOUND or VOLUME_NOT_FOUND.
        """
        name = f"hosts/{host}/pools/{pool}/volumes/{volume}"
        for entry in await self._volumes(host, pool):
            if entry.name == name:
                return entry
        raise NotFoundError(VOLUME_NOT_FOUND, f"pool {pool} has no volume {volume}", resource=name)

    async def list_volumes(self, host: str, pool: str, page_size: int, page_token: str) -> Page[Volume]:
        """The volumes of a pool, by name."""
        return page_of(await self._volumes(host, pool), page_size, page_token, lambda volume: volume.name)

    @once
    async def create_volume(
        self,
        call: Call,
        host: str,
        pool: str,
        volume_id: str,
        capacity_bytes: int,
        format_: DiskFormat,
        preallocation: Preallocation = Preallocation.NONE,
    ) -> Operation | None:
        """Create an empty volume."""
        check_new_id(volume_id, "volume_id")
        wrong = Violations()
        check_capacity(capacity_bytes, "capacity_bytes", wrong)
        if preallocation is Preallocation.METADATA and format_ is not DiskFormat.QCOW2:
            wrong.add(
                "preallocation",
                f"{format_.value} has no metadata to allocate",
                Preallocation.NONE.value,
                Preallocation.FULL.value,
            )
        wrong.check()
        await self._core.settled(host)
        arguments = VolumeArguments(host, pool, volume_id, capacity_bytes, format_, preallocation)
        await self._check_new(arguments)
        if call.validate_only:
            return None
        return await self._core.engine.submit(self._create, arguments, submission(call, arguments.name, arguments.name))

    @once
    async def delete_volume(self, call: Call, host: str, pool: str, volume: str) -> Operation | None:
        """Delete a volume that no guest uses."""
        await self._core.settled(host)
        record = await self.unused(host, pool, volume)
        if call.validate_only:
            return None
        arguments = VolumeArguments(host, pool, volume)
        return await self._core.engine.submit(self._delete, arguments, submission(call, record.name, record.name))

    @once
    async def resize_volume(
        self, call: Call, host: str, pool: str, volume: str, capacity_bytes: int, *, allow_shrink: bool
    ) -> Operation | None:
        """Change the size of a volume that no active guest uses."""
        wrong = Violations()
        check_capacity(capacity_bytes, "capacity_bytes", wrong)
        wrong.check()
        await self._core.settled(host)
        self._require(host, cap.VOLUME_RESIZE)
        record = await self.resizable(host, pool, volume, capacity_bytes, allow_shrink=allow_shrink)
        if call.validate_only:
            return None
        arguments = ResizeArguments(host, pool, volume, capacity_bytes, allow_shrink=allow_shrink)
        return await self._core.engine.submit(self._resize, arguments, submission(call, record.name, record.name))

    @once
    async def clone_volume(
        self, call: Call, host: str, pool: str, volume: str, volume_id: str, to_pool: str, format_: DiskFormat | None
    ) -> Operation | None:
        """Copy a volume that no active guest uses; ``to_pool`` is on the same host."""
        check_new_id(volume_id, "volume_id")
        await self._core.settled(host)
        self._require(host, cap.VOLUME_CLONE)
        record = await self.quiet(host, pool, volume, "be cloned")
        native = DiskFormat.QCOW2 if record.format.lower() == "qcow2" else DiskFormat.RAW
        wanted = format_ or native
        arguments = CloneArguments(
            host,
            to_pool or pool,
            volume_id,
            format=wanted,
            source_pool=pool,
            source=volume,
            converts=wanted is not native or bool(record.backing_path) or not is_local(self._core.link(host).config),
        )
        await self._check_new(arguments)
        if call.validate_only:
            return None
        return await self._core.engine.submit(self._clone, arguments, submission(call, arguments.name, arguments.name))

    # ------------------------------------------------------------------ uploads that become volumes

    async def check(self, upload: Upload) -> None:
        """See :class:`virtd.service.uploads.Receiver`.

        :raises AlreadyExistsError: VOLUME_EXISTS.
        :raises ResourceExhaustedError: STORAGE_FULL, the pool has no room for it.
        """
        ids = parse(upload.target, VOLUME_NAME)
        await self._core.settled(ids["host"])
        self._require(ids["host"], cap.VOLUME_TRANSFER)
        arguments = VolumeArguments(ids["host"], ids["pool"], ids["volume"])
        await self._check_new(arguments)
        pool = await self.get_pool(ids["host"], ids["pool"])
        free = pool.available_bytes
        if upload.format is not DiskFormat.RAW and free is not None and upload.size_bytes > free:
            # A raw file may be nearly all holes: whether it fits shows when it is sent.
            raise ResourceExhaustedError(
                STORAGE_FULL, f"the pool has {free} bytes free, {upload.size_bytes} are needed", resource=pool.name
            )

    async def commit(self, call: Call, upload: Upload, digest: str) -> Operation:
        """See :class:`virtd.service.uploads.Receiver`."""
        ids = parse(upload.target, VOLUME_NAME)
        arguments = UploadArguments(
            ids["host"],
            ids["pool"],
            ids["volume"],
            upload.size_bytes,
            upload.format,
            upload_id=upload.name.removeprefix("uploads/"),
            digest=digest,
        )
        return await self._core.engine.submit(self._upload, arguments, submission(call, arguments.name, arguments.name))

    # --------------------------------------------------------------------------------- looking

    async def all_pools(self, host: str) -> list[Pool]:
        """The pools of a host, by name."""
        facet = self.facet(host, cap.POOLS)
        pools = await self._core.link(host).call(facet.list_pools())
        return sorted(
            (replace(pool, name=f"hosts/{host}/pools/{pool.name}") for pool in pools), key=lambda pool: pool.name
        )

    async def _volumes(self, host: str, pool: str) -> list[Volume]:
        facet = self.facet(host)
        volumes = await self._core.link(host).call(facet.list_volumes(pool))
        by_path: dict[str, set[str]] = {}
        by_name: dict[str, set[str]] = {}
        for view in self._core.inventory.guests(host):
            for disk in view.guest.status.disks:
                by_path.setdefault(disk.path, set()).add(view.guest.name)
            for owned in view.owned_volumes:  # also of a guest that is being made, or that the host has lost
                by_name.setdefault(owned, set()).add(view.guest.name)
        for trashed in self._core.trash.owners(host):
            for owned in trashed.owned:
                by_name.setdefault(owned, set()).add(trashed.entry.name)
        # A volume that another is based on is in use as well: deleting it would destroy both.
        for volume in volumes:
            if volume.backing_path:
                by_path.setdefault(volume.backing_path, set()).add(f"hosts/{host}/pools/{pool}/volumes/{volume.name}")
        return sorted(
            (
                replace(
                    volume,
                    name=f"hosts/{host}/pools/{pool}/volumes/{volume.name}",
                    used_by=tuple(
                        sorted(by_path.get(volume.path, set()) | by_name.get(f"{pool}/{volume.name}", set()))
                    ),
                )
                for volume in volumes
            ),
            key=lambda volume: volume.name,
        )

    async def unused(self, host: str, pool: str, volume: str) -> Volume:
        """The volume, if nobody uses it: no guest, and no volume of any pool that is based on it.

        :raises NotFoundError: POOL_NOT_FOUND or VOLUME_NOT_FOUND.
        :raises FailedPreconditionError: VOLUME_IN_USE.
        """
        record = await self.get_volume(host, pool, volume)
        _check_unused(record)
        _check_unused(replace(record, used_by=await self._users(host, pool, record)))
        return record

    async def quiet(self, host: str, pool: str, volume: str, what: str) -> Volume:
        """The volume, if nothing writes to it: every guest that uses it is stopped.

        :param what: what cannot be done otherwise: "be cloned".
        :raises NotFoundError: POOL_NOT_FOUND or VOLUME_NOT_FOUND.
        :raises FailedPreconditionError: VOLUME_IN_USE.
        """
        record = await self.get_volume(host, pool, volume)
        busy = [
            view.guest
            for view in self._core.inventory.guests(host)
            if view.guest.name in record.used_by and view.guest.status.state not in _IDLE
        ]
        if busy:
            users = ", ".join(f"{guest.name} ({guest.status.state.value})" for guest in busy)
            hint = "; resize the disk of that guest instead" if what == "be resized" else "; stop it first"
            raise FailedPreconditionError(
                VOLUME_IN_USE,
                f"{record.name} cannot {what} now: it is used by {users}{hint}",
                resource=record.name,
                metadata={"used_by": ",".join(guest.name for guest in busy)},
            )
        return record

    async def resizable(self, host: str, pool: str, volume: str, capacity_bytes: int, *, allow_shrink: bool) -> Volume:
        """The volume, if it can be given this size.

        :raises NotFoundError: POOL_NOT_FOUND or VOLUME_NOT_FOUND.
        :raises FailedPreconditionError: VOLUME_IN_USE or SHRINK_REFUSED.
        """
        record = await self.quiet(host, pool, volume, "be resized")
        based = [user for user in await self._users(host, pool, record) if "/volumes/" in user]
        if based:  # what an overlay shows behind its base's end is not defined
            raise _in_use(replace(record, used_by=tuple(based)))
        before = record.capacity_bytes
        if before is not None and capacity_bytes < before:
            if not allow_shrink:
                raise FailedPreconditionError(
                    SHRINK_REFUSED,
                    f"{record.name} has {before} bytes, and what lies behind {capacity_bytes} would be lost",
                    resource=record.name,
                    metadata={"capacity_bytes": str(before)},
                )
            _check_unused(record)
        return record

    async def _users(self, host: str, pool: str, record: Volume) -> tuple[str, ...]:
        """Who uses the volume: guests, and volumes of all active pools that are based on it."""
        users = set(record.used_by)
        link, facet = self._core.link(host), self.facet(host)
        for other in await link.call(facet.list_pools()):
            if other.name != pool and other.state is PoolState.ACTIVE:
                for entry in await link.call(facet.list_volumes(other.name)):
                    if entry.backing_path == record.path:
                        users.add(f"hosts/{host}/pools/{other.name}/volumes/{entry.name}")
        return tuple(sorted(users))

    async def _check_new(self, arguments: VolumeArguments) -> None:
        """Refuse a name that is taken, and a pool that is not there or not started."""
        if any(entry.name == arguments.name for entry in await self._volumes(arguments.host, arguments.pool)):
            raise AlreadyExistsError(
                VOLUME_EXISTS, f"pool {arguments.pool} has a volume {arguments.volume} already", resource=arguments.name
            )

    def _require(self, host: str, capability: str) -> None:
        cap.require(self._core.link(host).capabilities, capability, resource=f"hosts/{host}")


def _in_use(volume: Volume) -> FailedPreconditionError:
    return FailedPreconditionError(
        VOLUME_IN_USE,
        f"{volume.name} is used by {', '.join(volume.used_by)}",
        resource=volume.name,
        metadata={"used_by": ",".join(volume.used_by)},
    )


def _check_unused(volume: Volume) -> None:
    """Refuse when somebody uses the volume.

    :raises FailedPreconditionError: VOLUME_IN_USE.
    """
    if volume.used_by:
        raise _in_use(volume)
