"""Use cases of pools and volumes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from virtd.backend import capabilities as cap
from virtd.backend.api import StorageFacet, VolumeRequest
from virtd.errors import (
    POOL_NOT_FOUND,
    VOLUME_EXISTS,
    VOLUME_IN_USE,
    VOLUME_NOT_FOUND,
    AlreadyExistsError,
    FailedPreconditionError,
    NotFoundError,
    unsupported,
)
from virtd.model.guest import DiskFormat
from virtd.model.names import check_new_id
from virtd.model.operation import Operation
from virtd.model.storage import Pool, PoolState, Volume
from virtd.operations import Outcome, Run, Step, Verb
from virtd.service.call import Call, Page, page_of
from virtd.service.core import Core, once, submission
from virtd.service.validate import Violations, check_capacity
from virtd.service.verbs.base import patience


@dataclass(frozen=True, slots=True)
class VolumeArguments:
    """Which volume, and for a new one what it is."""

    host: str
    pool: str
    volume: str
    capacity_bytes: int = 0
    format: DiskFormat = DiskFormat.QCOW2

    @property
    def name(self) -> str:
        """Its resource name."""
        return f"hosts/{self.host}/pools/{self.pool}/volumes/{self.volume}"


class Storage:
    """Use cases of pools and volumes."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._create = CreateVolume(core, self)
        self._delete = DeleteVolume(core, self)
        core.engine.register(self._create)
        core.engine.register(self._delete)

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
        for entry in await self._pools(host):
            if entry.name == name:
                return entry
        raise NotFoundError(POOL_NOT_FOUND, f"host {host} has no pool {pool}", resource=name)

    async def list_pools(self, host: str, page_size: int, page_token: str) -> Page[Pool]:
        """The pools of a host, by name."""
        return page_of(await self._pools(host), page_size, page_token, lambda pool: pool.name)

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
        self, call: Call, host: str, pool: str, volume_id: str, capacity_bytes: int, format_: DiskFormat
    ) -> Operation | None:
        """Create an empty volume."""
        check_new_id(volume_id, "volume_id")
        wrong = Violations()
        check_capacity(capacity_bytes, "capacity_bytes", wrong)
        wrong.check()
        await self._core.settled(host)
        arguments = VolumeArguments(host, pool, volume_id, capacity_bytes, format_)
        if any(entry.name == arguments.name for entry in await self._volumes(host, pool)):
            raise AlreadyExistsError(
                VOLUME_EXISTS, f"pool {pool} has a volume {volume_id} already", resource=arguments.name
            )
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

    async def _pools(self, host: str) -> list[Pool]:
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
        link, facet = self._core.link(host), self.facet(host)
        for other in await link.call(facet.list_pools()):
            if other.name != pool and other.state is PoolState.ACTIVE:
                for entry in await link.call(facet.list_volumes(other.name)):
                    if entry.backing_path == record.path:
                        _check_unused(
                            replace(record, used_by=(f"hosts/{host}/pools/{other.name}/volumes/{entry.name}",))
                        )
        return record


def _check_unused(volume: Volume) -> None:
    """Refuse when somebody uses the volume.

    :raises FailedPreconditionError: VOLUME_IN_USE.
    """
    if volume.used_by:
        raise FailedPreconditionError(
            VOLUME_IN_USE,
            f"{volume.name} is used by {', '.join(volume.used_by)}",
            resource=volume.name,
            metadata={"used_by": ",".join(volume.used_by)},
        )


class CreateVolume(Verb[VolumeArguments]):
    """An empty volume."""

    name = "volume-create"

    def __init__(self, core: Core, storage: Storage) -> None:
        self._core = core
        self._storage = storage

    @property
    def arguments(self) -> type[VolumeArguments]:
        """Journalled."""
        return VolumeArguments

    def steps(self, arguments: VolumeArguments) -> Sequence[Step[VolumeArguments]]:
        """After the check, what is there under this name was begun by this very operation."""
        return [Step("check", self._check, weight=0.1), Step("create", self._do, undo=self._undo)]

    async def _check(self, run: Run[VolumeArguments]) -> None:
        arguments = run.arguments
        try:
            await self._storage.get_volume(arguments.host, arguments.pool, arguments.volume)
        except NotFoundError as error:
            if error.reason is VOLUME_NOT_FOUND:
                return
            raise
        raise AlreadyExistsError(
            VOLUME_EXISTS, f"pool {arguments.pool} has a volume {arguments.volume} already", resource=arguments.name
        )

    async def _do(self, run: Run[VolumeArguments]) -> None:
        arguments = run.arguments
        facet, link = self._storage.facet(arguments.host), self._core.link(arguments.host)
        if run.recovered:
            await link.call(facet.delete_volume(arguments.pool, arguments.volume, run))
        request = VolumeRequest(
            arguments.pool, arguments.volume, arguments.format, capacity_bytes=arguments.capacity_bytes
        )
        await link.call(facet.create_volume(request, run), timeout_s=patience(run))

    async def _undo(self, run: Run[VolumeArguments]) -> None:
        error = run.operation.error
        if error is not None and error.reason == VOLUME_EXISTS.name:
            return  # somebody else's
        arguments = run.arguments
        facet, link = self._storage.facet(arguments.host), self._core.link(arguments.host)
        await link.call(facet.delete_volume(arguments.pool, arguments.volume, run))

    async def finish(self, run: Run[VolumeArguments]) -> Outcome:
        """The volume."""
        arguments = run.arguments
        volume = await self._storage.get_volume(arguments.host, arguments.pool, arguments.volume)
        return Outcome(volume.name, volume)


class DeleteVolume(Verb[VolumeArguments]):
    """Checked once more when its turn comes."""

    name = "volume-delete"

    def __init__(self, core: Core, storage: Storage) -> None:
        self._core = core
        self._storage = storage

    @property
    def arguments(self) -> type[VolumeArguments]:
        """Journalled."""
        return VolumeArguments

    def steps(self, arguments: VolumeArguments) -> Sequence[Step[VolumeArguments]]:
        """One step, idempotent."""
        return [Step("delete", self._do, cancellable=False)]

    async def _do(self, run: Run[VolumeArguments]) -> None:
        arguments = run.arguments
        facet, link = self._storage.facet(arguments.host), self._core.link(arguments.host)
        try:
            await self._storage.unused(arguments.host, arguments.pool, arguments.volume)
        except NotFoundError:
            return
        await link.call(facet.delete_volume(arguments.pool, arguments.volume, run))

    async def finish(self, run: Run[VolumeArguments]) -> Outcome:
        """Nothing is left to show."""
        return Outcome()
