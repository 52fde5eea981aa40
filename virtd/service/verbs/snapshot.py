"""Create, describe, revert and delete snapshots.

Each verb plans first, in a step of its own that has no side effect: the plan is journalled before the
next step begins, and after a crash that step is given the same plan again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final
from uuid import UUID

from virtd.backend.api import SnapshotFacet, SnapshotPlan, SnapshotRequest
from virtd.backend.capabilities import (
    SNAPSHOT,
    SNAPSHOT_EXTERNAL,
    SNAPSHOT_MEMORY,
    SNAPSHOT_QUIESCE,
    require,
)
from virtd.errors import (
    HOST_UNREACHABLE,
    SNAPSHOT_BLOCKED,
    SNAPSHOT_EXISTS,
    SNAPSHOT_NOT_FOUND,
    VOLUME_IN_USE,
    AlreadyExistsError,
    FailedPreconditionError,
    NotFoundError,
    VirtdError,
    unsupported,
)
from virtd.inventory import GuestView, HostLink
from virtd.model.event import EventType
from virtd.model.guest import DiskDevice, DiskStatus, GuestState
from virtd.model.host import CapabilityLevel
from virtd.model.snapshot import COPY, Snapshot, SnapshotLocation
from virtd.operations import Outcome, Probe, Run, Step
from virtd.service.core import Core
from virtd.service.verbs.base import GuestArguments, GuestVerb, patience
from virtd.service.verbs.disposal import dispose, storage_of
from virtd.store import Codec

PLANS: Final = Codec(SnapshotPlan)
COPYING_S: Final = 12 * 3600.0
"""How long it may take where snapshots are copies of disks: these are large."""
_ACTIVE: Final = (GuestState.RUNNING, GuestState.PAUSED)
_DOWN: Final = (GuestState.STOPPED, GuestState.CRASHED, GuestState.SUSPENDED)


@dataclass(frozen=True, slots=True)
class SnapshotArguments(GuestArguments):
    """Which snapshot, and what it holds.

    :param descendants: for a deletion: the snapshots that go before it, the youngest first.
    """

    snapshot: str = ""
    description: str = ""
    memory: bool = False
    location: SnapshotLocation = SnapshotLocation.AUTO
    quiesce: bool = False
    descendants: tuple[str, ...] = ()

    @property
    def snapshot_name(self) -> str:
        """Its resource name."""
        return f"{self.guest_name}/snapshots/{self.snapshot}"


def facet_of(link: HostLink, resource: str = "") -> SnapshotFacet:
    """The host's snapshots.

    :raises UnsupportedError: CAPABILITY_UNSUPPORTED.
    """
    require(link.capabilities, SNAPSHOT, resource=resource)
    facet = link.facets.snapshots
    if facet is None:
        raise unsupported(SNAPSHOT, "the host offers no snapshots", resource=resource)
    return facet


def request_of(arguments: SnapshotArguments, state: GuestState) -> SnapshotRequest:
    """What the backend is asked for: a guest without memory has none to be kept."""
    return SnapshotRequest(
        arguments.snapshot,
        arguments.description,
        memory=arguments.memory and state in _ACTIVE,
        location=arguments.location,
        quiesce=arguments.quiesce and not arguments.memory and state is GuestState.RUNNING,
    )


def users_of(core: Core, host: str) -> dict[str, GuestView]:
    """Who has which file as a disk, by the files' paths."""
    return {disk.path: view for view in core.inventory.guests(host) for disk in view.guest.status.disks}


def check_shared(core: Core, arguments: SnapshotArguments) -> None:
    """Refuse to copy a disk that another guest, which runs, can write to as well.

    :raises FailedPreconditionError: SNAPSHOT_BLOCKED.
    """
    view = core.inventory.by_uid(arguments.uid)
    mine = {disk.path: disk.name for disk in _written_to(view)} if view is not None else {}
    for other in core.inventory.guests(arguments.host):
        state = other.guest.status.state
        if other.guest.uid == arguments.uid or state in _DOWN:
            continue
        for disk in _written_to(other):
            if disk.path in mine:
                raise FailedPreconditionError(
                    SNAPSHOT_BLOCKED,
                    f"disk {mine[disk.path]} of {arguments.guest} is a disk of {other.guest.name} too, which is "
                    f"{state.value}: shut that down first",
                    resource=str(arguments.guest_name),
                    metadata={"disk": mine[disk.path], "used_by": other.guest.name},
                )


def _written_to(view: GuestView) -> list[DiskStatus]:
    return [
        disk
        for disk in view.guest.status.disks
        if disk.path and not disk.read_only and disk.device in (None, DiskDevice.DISK)
    ]


async def plan_creation(core: Core, arguments: SnapshotArguments, state: GuestState) -> SnapshotPlan:
    """Refuse what cannot be done, and plan the rest.  No side effect.

    :raises VirtdError: see CreateSnapshot.
    """
    resource, link = str(arguments.guest_name), core.link(arguments.host)
    facet, request = facet_of(link, resource), request_of(arguments, state)
    if request.memory:
        require(link.capabilities, SNAPSHOT_MEMORY, resource=resource)
    if request.location is SnapshotLocation.EXTERNAL:
        require(link.capabilities, SNAPSHOT_EXTERNAL, resource=resource)
    if request.quiesce:
        require(link.capabilities, SNAPSHOT_QUIESCE, resource=resource)
        agent = link.facets.agent
        if agent is None:
            raise unsupported(SNAPSHOT_QUIESCE, "the host reaches no guest agents", resource=resource)
        await link.call(agent.ping_agent(arguments.uid))
    plan = await link.call(facet.plan_create(arguments.uid, request))
    if plan.location == COPY:
        check_shared(core, arguments)
    return plan


async def plan_deletion(core: Core, link: HostLink, uid: UUID, name: str) -> SnapshotPlan:
    """What deleting it would do.  No side effect.

    :raises FailedPreconditionError: as the facet; VOLUME_IN_USE, a guest has a file of it as its disk.
    """
    plan = await link.call(facet_of(link).plan_delete(uid, name))
    users = users_of(core, link.id)
    for volume in plan.removed if plan.location == COPY else ():
        pool, _, file = volume.partition("/")
        user = users.get(await link.call(storage_of(link).volume_path(pool, file)))
        if user is not None:
            raise FailedPreconditionError(
                VOLUME_IN_USE,
                f"volume {volume}, a copy that belongs to the snapshot {name}, is a disk of {user.guest.name}",
                resource=user.guest.name,
                metadata={"volume": volume, "used_by": user.guest.name},
            )
    return plan


class _SnapshotVerb(GuestVerb[SnapshotArguments]):
    @property
    def arguments(self) -> type[SnapshotArguments]:
        """Journalled."""
        return SnapshotArguments

    def timeout_s(self, arguments: SnapshotArguments) -> float | None:
        """Copying takes what it takes."""
        capabilities = self.core.link(arguments.host).capabilities
        level = next(entry.level for entry in capabilities if entry.id == SNAPSHOT)
        return COPYING_S if level is CapabilityLevel.EMULATED else None

    def facet(self, run: Run[SnapshotArguments]) -> SnapshotFacet:
        """The host's snapshots."""
        return facet_of(self.link(run), str(run.arguments.guest_name))

    async def find(self, run: Run[SnapshotArguments], name: str = "") -> Snapshot | None:
        """The snapshot, if the hypervisor has it."""
        link = self.link(run)
        for snapshot in await link.call(self.facet(run).list_snapshots(run.arguments.uid)):
            if snapshot.name == (name or run.arguments.snapshot):
                return snapshot
        return None

    async def required(self, run: Run[SnapshotArguments]) -> Snapshot:
        """The snapshot.

        :raises NotFoundError: SNAPSHOT_NOT_FOUND.
        """
        found = await self.find(run)
        if found is None:
            raise NotFoundError(
                SNAPSHOT_NOT_FOUND,
                f"{run.arguments.guest} has no snapshot {run.arguments.snapshot}",
                resource=run.arguments.snapshot_name,
            )
        return found

    def tell(self, run: Run[SnapshotArguments], type_: EventType, snapshot: str = "") -> None:
        """Emit an event about a snapshot."""
        snapshot = snapshot or run.arguments.snapshot
        name = f"{run.arguments.guest_name}/snapshots/{snapshot}"
        self.core.events.emit(type_, name, uid=str(run.arguments.uid), attributes={"snapshot": snapshot})


def planned(run: Run[SnapshotArguments], key: str = "plan") -> SnapshotPlan | None:
    """What the step before has planned; None for an operation that an older virtd began."""
    text = run.scratch.get(key)
    return PLANS.decode(text) if text else None


def own(core: Core, run: Run[SnapshotArguments], add: Iterable[str] = (), remove: Iterable[str] = ()) -> None:
    """Write down which files belong to the guest: they go with it."""
    view = core.inventory.by_uid(run.arguments.uid)
    if view is not None:
        gone, new = set(remove), [volume for volume in add if volume not in view.owned_volumes]
        kept = [volume for volume in view.owned_volumes if volume not in gone]
        core.inventory.own_volumes(run.arguments.uid, [*kept, *new])


class CreateSnapshot(_SnapshotVerb):
    """Take one."""

    name = "snapshot-create"

    def steps(self, arguments: SnapshotArguments) -> Sequence[Step[SnapshotArguments]]:
        """After the check, a snapshot of this name is this operation's own: to be found again, or undone."""
        return [
            Step("check", self._check, weight=0.1),
            Step("snapshot", self._do, probe=self._probe, undo=self._undo),
        ]

    async def _check(self, run: Run[SnapshotArguments]) -> None:
        if await self.find(run) is not None:
            raise AlreadyExistsError(
                SNAPSHOT_EXISTS,
                f"{run.arguments.guest} has a snapshot {run.arguments.snapshot} already",
                resource=run.arguments.snapshot_name,
            )
        await self.refresh(run)
        plan = await plan_creation(self.core, run.arguments, self.state(run))
        run.scratch["plan"] = PLANS.encode(plan)
        run.note(f"{plan.location}: {plan.reason}")

    async def _do(self, run: Run[SnapshotArguments]) -> None:
        arguments, link = run.arguments, self.link(run)
        await self.refresh(run)
        plan, request = planned(run), request_of(arguments, self.state(run))
        if plan is not None and plan.location == COPY:
            check_shared(self.core, arguments)
        own(self.core, run, add=plan.volumes if plan is not None else ())
        work = self.facet(run).create_snapshot(arguments.uid, request, run, plan)
        await link.call(work, timeout_s=patience(run))
        await self.refresh(run)

    async def _probe(self, run: Run[SnapshotArguments]) -> Probe:
        return Probe.DONE if await self.find(run) is not None else Probe.TODO

    async def _undo(self, run: Run[SnapshotArguments]) -> None:
        plan = planned(run)
        # Also what is not listed yet: after a crash it may be half made.
        work = self.facet(run).delete_snapshot(run.arguments.uid, run.arguments.snapshot, run)
        await self.link(run).call(work, timeout_s=patience(run))
        own(self.core, run, remove=plan.volumes if plan is not None else ())
        await self.refresh(run)

    async def finish(self, run: Run[SnapshotArguments]) -> Outcome:
        """The snapshot."""
        snapshot, plan = await self.find(run), planned(run)
        name = run.arguments.snapshot_name
        self.tell(run, EventType.SNAPSHOT_ADDED)
        if snapshot is None:
            return Outcome(name)
        return Outcome(name, replace(snapshot, name=name, reason=plan.reason if plan is not None else ""))


class DescribeSnapshot(_SnapshotVerb):
    """Change the description."""

    name = "snapshot-update"

    def steps(self, arguments: SnapshotArguments) -> Sequence[Step[SnapshotArguments]]:
        """One step, idempotent."""
        return [Step("describe", self._do)]

    async def _do(self, run: Run[SnapshotArguments]) -> None:
        arguments = run.arguments
        await self.required(run)
        work = self.facet(run).describe_snapshot(arguments.uid, arguments.snapshot, arguments.description)
        await self.link(run).call(work, timeout_s=patience(run))

    async def finish(self, run: Run[SnapshotArguments]) -> Outcome:
        """The snapshot."""
        name = run.arguments.snapshot_name
        return Outcome(name, replace(await self.required(run), name=name))


class RevertSnapshot(_SnapshotVerb):
    """Make the guest what it was."""

    name = "snapshot-revert"

    def steps(self, arguments: SnapshotArguments) -> Sequence[Step[SnapshotArguments]]:
        """Reverting twice is reverting once; half of it cannot be taken back, so it is not cancellable."""
        return [Step("check", self._check, weight=0.1), Step("revert", self._do, cancellable=False)]

    async def _check(self, run: Run[SnapshotArguments]) -> None:
        await self.required(run)
        plan = await self.link(run).call(self.facet(run).plan_revert(run.arguments.uid, run.arguments.snapshot))
        run.scratch["plan"] = PLANS.encode(plan)

    async def _do(self, run: Run[SnapshotArguments]) -> None:
        link, plan = self.link(run), planned(run)
        await self.required(run)
        own(self.core, run, add=plan.volumes if plan is not None else ())
        work = self.facet(run).revert_snapshot(run.arguments.uid, run.arguments.snapshot, run, plan)
        try:
            await link.call(work, timeout_s=patience(run))
        except VirtdError as error:
            if error.reason is not HOST_UNREACHABLE and plan is not None:
                own(self.core, run, remove=await self._missing(run, plan.volumes))
            raise
        own(self.core, run, remove=plan.removed if plan is not None else ())
        await self.refresh(run)
        if plan is not None and plan.replaced:
            await self._dispose(run, plan.replaced)

    async def _missing(self, run: Run[SnapshotArguments], volumes: Sequence[str]) -> list[str]:
        """Which of the volumes are not there: a revert that has failed has removed them."""
        link, found = self.link(run), set[str]()
        for pool in {volume.partition("/")[0] for volume in volumes}:
            found |= {f"{pool}/{volume.name}" for volume in await link.call(storage_of(link).list_volumes(pool))}
        return [volume for volume in volumes if volume not in found]

    async def _dispose(self, run: Run[SnapshotArguments], replaced: Sequence[str]) -> None:
        """Delete the disks that the guest had until now, where they are its own."""
        arguments = run.arguments
        view = self.core.inventory.by_uid(arguments.uid)
        owned = () if view is None else view.owned_volumes
        for volume in replaced:
            if volume not in owned:
                run.note(f"volume {volume} is not used by {arguments.guest} any more, and stays: it is not its own")
        mine = [volume for volume in replaced if volume in owned]
        users = users_of(self.core, arguments.host)
        for volume in tuple(mine):
            pool, _, file = volume.partition("/")
            path = await self.link(run).call(storage_of(self.link(run)).volume_path(pool, file))
            if path in users:
                run.warn(f"volume {volume} stays: it is a disk of {users[path].guest.name}")
                mine.remove(volume)
        stay = await dispose(self.core, run, arguments.host, mine, frozenset({str(arguments.guest_name)}))
        own(self.core, run, remove=(volume for volume in mine if volume not in stay))


class DeleteSnapshot(_SnapshotVerb):
    """Delete one, and those that descend from it where asked to; the other children keep their data."""

    name = "snapshot-delete"

    def steps(self, arguments: SnapshotArguments) -> Sequence[Step[SnapshotArguments]]:
        """Two for each: what one deletion does is only known when the one before it is done."""
        steps: list[Step[SnapshotArguments]] = []
        for name in (*arguments.descendants, arguments.snapshot):
            suffix = f" {name}" if arguments.descendants else ""

            async def check(run: Run[SnapshotArguments], name: str = name) -> None:
                await self._check(run, name)

            async def delete(run: Run[SnapshotArguments], name: str = name) -> None:
                await self._do(run, name)

            steps += [Step(f"check{suffix}", check, weight=0.1), Step(f"delete{suffix}", delete, cancellable=False)]
        return steps

    async def _check(self, run: Run[SnapshotArguments], name: str) -> None:
        plan = await plan_deletion(self.core, self.link(run), run.arguments.uid, name)
        run.scratch[f"plan {name}"] = PLANS.encode(plan)
        if plan.reason:
            run.note(f"{name}: {plan.reason}")

    async def _do(self, run: Run[SnapshotArguments], name: str) -> None:
        link, plan = self.link(run), planned(run, f"plan {name}")
        work = self.facet(run).delete_snapshot(run.arguments.uid, name, run, plan)
        await link.call(work, timeout_s=patience(run))
        own(self.core, run, remove=plan.removed if plan is not None else ())
        run.scratch.pop(f"plan {name}", None)
        await self.refresh(run)
        self.tell(run, EventType.SNAPSHOT_REMOVED, name)

    async def finish(self, run: Run[SnapshotArguments]) -> Outcome:
        """Nothing is left to show."""
        return Outcome()
