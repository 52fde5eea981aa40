"""Use cases of snapshots."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC
from typing import Final

from virtd.backend import capabilities as cap
from virtd.errors import (
    CAPABILITY_UNSUPPORTED,
    GUEST_NOT_FOUND,
    SNAPSHOT_EXISTS,
    SNAPSHOT_NOT_FOUND,
    AlreadyExistsError,
    ErrorRecord,
    NotFoundError,
    VirtdError,
)
from virtd.inventory import GuestView
from virtd.model.guest import GuestState
from virtd.model.names import WILDCARD, GuestName, check_new_id
from virtd.model.operation import Operation
from virtd.model.snapshot import Snapshot, SnapshotLocation
from virtd.service.call import Call, page_of
from virtd.service.core import Core, once, submission
from virtd.service.validate import TEXT_MAX, Violations
from virtd.service.verbs.snapshot import (
    CreateSnapshot,
    DeleteSnapshot,
    DescribeSnapshot,
    RevertSnapshot,
    SnapshotArguments,
    facet_of,
    plan_creation,
    plan_deletion,
)

AT_ONCE: Final = 8
"""So many guests of a host are asked for their snapshots at the same time."""


@dataclass(frozen=True, slots=True)
class Draft:
    """A snapshot that is asked for."""

    snapshot_id: str
    description: str = ""
    memory: bool = False
    location: SnapshotLocation = SnapshotLocation.AUTO
    quiesce: bool = False


@dataclass(frozen=True, slots=True)
class SnapshotPage:
    """A page of a list, and what could not be listed."""

    items: tuple[Snapshot, ...]
    next_page_token: str = ""
    errors: tuple[ErrorRecord, ...] = ()


Keyed = tuple[str, Snapshot]
"""A snapshot, and its place in the order of a list."""


class Snapshots:
    """Use cases of snapshots."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._create = CreateSnapshot(core)
        self._describe = DescribeSnapshot(core)
        self._revert = RevertSnapshot(core)
        self._delete = DeleteSnapshot(core)
        for verb in (self._create, self._describe, self._revert, self._delete):
            core.engine.register(verb)

    @once
    async def create(self, call: Call, name: GuestName, draft: Draft) -> Operation | Snapshot | None:
        """Take a snapshot; see the RPC's documentation for the errors.

        :returns: with ``validate_only`` what would be taken; None where other operations come first.
        """
        check_new_id(draft.snapshot_id, "snapshot_id")
        _check_description(draft.description, "description")
        await self._core.settled(name.host)
        busy = bool(self._core.engine.current(str(name)))
        view = self._core.check_verb(name, "snapshot", now=not busy)
        state = view.guest.status.state
        # Whether there is any memory is seen when the turn comes.
        if draft.memory and (busy or state in (GuestState.RUNNING, GuestState.PAUSED)):
            cap.require(self._core.link(name.host).capabilities, cap.SNAPSHOT_MEMORY, resource=str(name))
        if any(known.name == draft.snapshot_id for known in await self._all(name)):
            raise AlreadyExistsError(
                SNAPSHOT_EXISTS,
                f"{name.guest} has a snapshot {draft.snapshot_id} already",
                resource=f"{name}/snapshots/{draft.snapshot_id}",
            )
        arguments = SnapshotArguments(
            name.host,
            name.guest,
            view.guest.uid,
            snapshot=draft.snapshot_id,
            description=draft.description,
            memory=draft.memory,
            location=draft.location,
            quiesce=draft.quiesce,
        )
        planned = None
        if not busy:
            plan = await plan_creation(self._core, arguments, state)
            planned = Snapshot(
                arguments.snapshot_name,
                draft.description,
                plan.kind,
                guest_state=state.value,
                location=plan.location,
                reason=plan.reason,
            )
        if call.validate_only:
            return planned
        return await self._core.engine.submit(self._create, arguments, submission(call, str(name), str(name)))

    async def get(self, name: GuestName, snapshot_id: str) -> Snapshot:
        """A snapshot.

        :raises NotFoundError: SNAPSHOT_NOT_FOUND.
        """
        await self._core.settled(name.host)
        for snapshot in await self._all(name):
            if snapshot.name == snapshot_id:
                return replace(snapshot, name=f"{name}/snapshots/{snapshot.name}")
        raise NotFoundError(
            SNAPSHOT_NOT_FOUND,
            f"{name.guest} has no snapshot {snapshot_id}",
            resource=f"{name}/snapshots/{snapshot_id}",
        )

    async def list(self, host: str, guest: str, page_size: int, page_token: str) -> SnapshotPage:
        """The snapshots of a guest, or with ``-`` of a host's guests or of all; parents before children.

        :raises NotFoundError: HOST_NOT_FOUND or GUEST_NOT_FOUND.
        """
        errors: tuple[ErrorRecord, ...] = ()
        if guest != WILDCARD:
            await self._core.settled(host)
            records = await self._of_guest(GuestName(host, guest))
        else:
            records, errors = await self._of_many(host)
        page = page_of(records, page_size, page_token, lambda entry: entry[0])
        return SnapshotPage(tuple(snapshot for _, snapshot in page.items), page.next_page_token, errors)

    async def update(self, call: Call, name: GuestName, snapshot_id: str, description: str) -> Operation | None:
        """Change the description."""
        _check_description(description, "snapshot.description")
        return await self._existing(call, name, snapshot_id, self._describe, "snapshot", description=description)

    async def revert(self, call: Call, name: GuestName, snapshot_id: str) -> Operation | None:
        """Make the guest what it was."""
        return await self._existing(call, name, snapshot_id, self._revert, "revert")

    async def delete(
        self, call: Call, name: GuestName, snapshot_id: str, *, children: bool = False
    ) -> Operation | None:
        """Delete a snapshot, and with ``children`` all that descend from it."""
        return await self._existing(call, name, snapshot_id, self._delete, "snapshot", children=children)

    @once
    async def _existing(
        self,
        call: Call,
        name: GuestName,
        snapshot_id: str,
        verb: DescribeSnapshot | RevertSnapshot | DeleteSnapshot,
        rule: str,
        *,
        description: str = "",
        children: bool = False,
    ) -> Operation | None:
        await self._core.settled(name.host)
        busy = bool(self._core.engine.current(str(name)))
        view = self._core.check_verb(name, rule, now=not busy)
        descendants: tuple[str, ...] = ()
        if not busy:
            await self.get(name, snapshot_id)
            await self._refuse_early(name, view, snapshot_id, verb, alone=not children)
        if children:
            descendants = descendants_of(snapshot_id, await self._all(name))
        if call.validate_only:
            return None
        arguments = SnapshotArguments(
            name.host,
            name.guest,
            view.guest.uid,
            snapshot=snapshot_id,
            description=description,
            descendants=descendants,
        )
        return await self._core.engine.submit(verb, arguments, submission(call, str(name), str(name)))

    async def _refuse_early(
        self, name: GuestName, view: GuestView, snapshot_id: str, verb: object, *, alone: bool
    ) -> None:
        """What the first step would refuse is refused now."""
        link = self._core.link(name.host)
        facet = facet_of(link, str(name))
        if verb is self._revert:
            await link.call(facet.plan_revert(view.guest.uid, snapshot_id))
        elif verb is self._delete and alone:
            await plan_deletion(self._core, link, view.guest.uid, snapshot_id)

    async def _all(self, name: GuestName) -> Sequence[Snapshot]:
        view = self._core.view(name)
        link = self._core.link(name.host)
        return await link.call(facet_of(link, str(name)).list_snapshots(view.guest.uid))

    async def _of_guest(self, name: GuestName) -> Sequence[Keyed]:
        """With keys in the order of the list: a child is never older than its parent."""
        records = await self._all(name)
        depth: dict[str, int] = {}
        for record in records:
            depth[record.name] = depth.get(record.parent, 0) + 1
        keyed = [(f"{name} {_stamp(record)} {depth[record.name]:06} {record.name}", record) for record in records]
        return sorted(
            ((key, replace(record, name=f"{name}/snapshots/{record.name}")) for key, record in keyed),
            key=lambda entry: entry[0],
        )

    async def _of_many(self, host: str) -> tuple[Sequence[Keyed], tuple[ErrorRecord, ...]]:
        hosts = tuple(self._core.links) if host == WILDCARD else (self._core.link(host).id,)
        found: deque[Keyed] = deque()
        errors: deque[ErrorRecord] = deque()
        for records, wrong in await asyncio.gather(*(self._of_host(host_id) for host_id in hosts)):
            found += records
            errors += wrong
        return sorted(found, key=lambda entry: entry[0]), tuple(errors)

    async def _of_host(self, host: str) -> tuple[Sequence[Keyed], Sequence[ErrorRecord]]:
        link = self._core.link(host)
        found: deque[Keyed] = deque()
        errors: deque[ErrorRecord] = deque()
        try:
            _ = link.session
            facet_of(link, f"hosts/{host}")
        except VirtdError as error:
            # A host that has no snapshots lacks nothing here.
            known = error.reason is CAPABILITY_UNSUPPORTED
            return (), () if known else (error.with_resource(f"hosts/{host}").record,)
        slots = asyncio.Semaphore(AT_ONCE)

        async def one(view: GuestView) -> None:
            async with slots:
                try:
                    found.extend(await self._of_guest(view.key))
                except VirtdError as error:
                    if error.reason is not GUEST_NOT_FOUND:  # gone meanwhile
                        errors.append(error.with_resource(view.guest.name).record)

        await asyncio.gather(*(one(view) for view in self._core.inventory.guests(host)))
        return found, errors


def descendants_of(snapshot_id: str, snapshots: Sequence[Snapshot]) -> tuple[str, ...]:
    """The snapshots that descend from one, each before its parent.

    :param snapshots: parents before children, by bare ids.
    """
    family = {snapshot_id}
    for snapshot in snapshots:
        if snapshot.parent in family:
            family.add(snapshot.name)
    return tuple(s.name for s in reversed(snapshots) if s.name in family and s.name != snapshot_id)


def _check_description(description: str, field: str) -> None:
    wrong = Violations()
    if len(description) > TEXT_MAX or not (description.isprintable() or not description):
        wrong.add(field, f"must be at most {TEXT_MAX} printable characters")
    wrong.check()


def _stamp(snapshot: Snapshot) -> str:
    when = snapshot.create_time
    return "" if when is None else when.astimezone(UTC).isoformat(timespec="microseconds")
