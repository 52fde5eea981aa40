"""Use cases of guests: is it allowed, can the host do it, then an operation."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, TypeVar
from uuid import UUID, uuid4

from virtd.backend import capabilities as cap
from virtd.backend.api import FieldVerdict, ResolvedGuest
from virtd.backend.hookspecs import AdmitRequest
from virtd.errors import (
    DEADLINE_EXCEEDED,
    ETAG_MISMATCH,
    FIELD_INVALID,
    GUEST_EXISTS,
    GUEST_NOT_ADOPTED,
    VOLUME_IN_USE,
    AlreadyExistsError,
    ConflictError,
    DeadlineExceededError,
    ErrorRecord,
    FailedPreconditionError,
    InvalidArgumentError,
    VirtdError,
    invalid_field,
)
from virtd.inventory import GuestView, HostLink
from virtd.model.guest import (
    ConditionStatus,
    ConditionType,
    Guest,
    GuestSpec,
    GuestState,
    Origin,
    Presence,
    RunStrategy,
)
from virtd.model.names import WILDCARD, GuestName, check_new_id
from virtd.model.operation import Operation
from virtd.model.trash import DiskPolicy
from virtd.service.call import Call, page_of
from virtd.service.catalogue import ImageCatalogue
from virtd.service.changes import UpdatePlan
from virtd.service.cloud_init import without_secrets
from virtd.service.core import Core, attributes_of, invalid_state, once, submission
from virtd.service.filters import compile_filter
from virtd.service.lifecycle import Lifecycle
from virtd.service.resolve import Resolution, lower, resolve
from virtd.service.seeds import staging
from virtd.service.trashcan import entry_id
from virtd.service.validate import check_texts
from virtd.service.verbs.create import CreateArguments, CreateGuest
from virtd.service.verbs.delete import DeleteArguments, DeleteGuest, check_unprotected

FILTER_FIELDS: Final = (
    "name", "uid", "display_name", "status.state", "status.state_reason", "status.origin", "status.presence",
    "spec.vcpus", "spec.memory_bytes", "labels.*",
)  # fmt: skip
WAIT_DEFAULT_S: Final = 60.0
RECENT_S: Final = 1.0
_MAKES_GUESTS: Final = ("create", "clone", "recover", "backup-restore")
_BRINGS_GUESTS: Final = "migrate"
"""It stands in the queue of the name that its guest will have."""

A = TypeVar("A")


@dataclass(frozen=True, slots=True)
class GuestDraft:
    """What a caller says of a new guest."""

    spec: GuestSpec
    display_name: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class HostPlan:
    """What a draft becomes on one host; ``error`` says why it cannot be."""

    host: str
    native: str = ""
    native_format: str = ""
    verdicts: tuple[FieldVerdict, ...] = ()
    error: ErrorRecord | None = None
    warnings: tuple[str, ...] = ()
    update: UpdatePlan | None = None


@dataclass(frozen=True, slots=True)
class GuestPage:
    """One page of guests, the hosts that do not answer, and from where to watch."""

    views: tuple[GuestView, ...]
    next_page_token: str
    host_errors: tuple[tuple[str, ErrorRecord], ...]
    resume_token: str


class Guests(Lifecycle):
    """Use cases of guests."""

    def __init__(self, core: Core, catalogue: ImageCatalogue) -> None:
        super().__init__(core)
        self._catalogue = catalogue
        self._create = CreateGuest(core)
        self._delete = DeleteGuest(core)
        core.engine.register(self._create)
        core.engine.register(self._delete)
        self._creating: set[tuple[str, str]] = set()
        self._updating = asyncio.Lock()

    def get(self, name: GuestName) -> GuestView:
        """A guest, from memory.

        :raises NotFoundError: HOST_NOT_FOUND or GUEST_NOT_FOUND.
        """
        return self._core.view(name)

    async def list(self, host: str, filter_: str, page_size: int, page_token: str) -> GuestPage:
        """The guests of a host, or of all with ``-``; a host that does not answer never fails it.

        :raises NotFoundError: HOST_NOT_FOUND.
        :raises InvalidArgumentError: FILTER_INVALID, PAGE_TOKEN_INVALID or FIELD_INVALID.
        """
        predicate = compile_filter(filter_, FILTER_FIELDS)
        if host != WILDCARD:
            self._core.link(host)
        # Just after the daemon's start the first answer of a host is worth a moment's wait.
        await asyncio.gather(*(link.settled(RECENT_S) for link in self._links(host)))
        token = self._core.events.token()
        views = self._core.inventory.guests(None if host == WILDCARD else host)
        if filter_.strip():
            views = [view for view in views if predicate(attributes_of(view.guest).get)]
        page = page_of(views, page_size, page_token, lambda view: view.guest.name, lambda view: len(view.encoded))
        return GuestPage(page.items, page.next_page_token, self._host_errors(host), token)

    def _links(self, host: str) -> Sequence[HostLink]:
        return [link for key, link in self._core.links.items() if host in (WILDCARD, key)]

    def _host_errors(self, host: str) -> tuple[tuple[str, ErrorRecord], ...]:
        errors = []
        for link in self._links(host):
            try:
                _ = link.session
            except VirtdError as error:
                errors.append((f"hosts/{link.id}", error.record))
        return tuple(errors)

    async def wait(
        self,
        name: GuestName,
        state: GuestState | None,
        condition: ConditionType | None,
        deleted: bool,
        timeout_s: float,
    ) -> GuestView | None:
        """Wait until it holds; None when the guest is deleted.

        :raises DeadlineExceededError: DEADLINE_EXCEEDED, with what is instead.
        :raises NotFoundError: GUEST_NOT_FOUND, unless waiting for just that.
        """
        if state is None and condition is None and not deleted:
            raise invalid_field("target", "one of state, condition or deleted is required")
        self._core.link(name.host)
        deadline = time.monotonic() + (timeout_s or WAIT_DEFAULT_S)
        while True:
            head = self._core.events.head
            view = self._core.inventory.find(name)
            if view is None:
                if deleted:
                    return None
                return self._core.inventory.get(name)  # raises
            if not deleted and _holds(view.guest, state, condition):
                return view
            left = deadline - time.monotonic()
            if left <= 0:
                wanted = "deleted" if deleted else (state or condition or "")
                raise DeadlineExceededError(
                    DEADLINE_EXCEEDED,
                    f"{name.guest} is not {wanted} after {timeout_s or WAIT_DEFAULT_S:g} s; "
                    f"it is {view.guest.status.state}",
                    resource=str(name),
                )
            # Bounded, because a change is in memory a moment before its event is published.
            await self._core.events.wait_news(head, min(left, 1.0))

    # ----------------------------------------------------------------------------- create and plan

    @once
    async def create(self, call: Call, host: str, guest_id: str, draft: GuestDraft, start: bool) -> Operation:
        """Create a guest; see the RPC's documentation for the errors."""
        uid = uuid4()
        if start and draft.spec.run_strategy is RunStrategy.HALTED:
            raise invalid_field("start", "contradicts guest.spec.run_strategy HALTED")
        with self.claimed(host, guest_id):
            resolution, _, warnings = await self._resolve(host, guest_id, draft, uid, call.caller)
            self.check_taken(host, guest_id)
            arguments = CreateArguments(
                host=host,
                guest=guest_id,
                uid=uid,
                spec=without_secrets(resolution.spec),
                display_name=draft.display_name,
                labels=dict(draft.labels),
                annotations=dict(draft.annotations),
                volumes=resolution.volumes,
                accelerator=resolution.accelerator,
                accelerator_reason=resolution.accelerator_reason,
                start=start,
            )
            name = str(GuestName(host, guest_id))
            with staging(self._core.link(host), guest_id, uid, resolution.spec):
                return await self._core.engine.submit(self._create, arguments, submission(call, name, name, warnings))

    @contextlib.contextmanager
    def claimed(self, host: str, guest_id: str, *, new: bool = True) -> Iterator[None]:
        """A name for a new guest, until it is in the journal: there are awaits in between, and two must not pass.

        :param new: whether it has the form of new ids; a guest that comes back may have an older one.
        :raises InvalidArgumentError: FIELD_INVALID.
        :raises AlreadyExistsError: GUEST_EXISTS, somebody has the name, or is about to.
        """
        if new:
            self._check_name(host, guest_id)
        else:
            self._check_free(host, guest_id)
        self._creating.add((host, guest_id))
        try:
            yield
            # Nobody waits between this and the caller's submit.
        finally:
            self._creating.discard((host, guest_id))

    async def plan_one(self, host: str, guest_id: str, draft: GuestDraft, caller: str = "") -> HostPlan:
        """What create would do, or the error that it would raise.  No side effect."""
        self._check_name(host, guest_id)
        return await self._plan(host, guest_id, draft, caller)

    async def plan(self, hosts: Sequence[str], guest_id: str, draft: GuestDraft) -> Sequence[HostPlan]:
        """What a draft becomes on several hosts; what is wrong with one does not hide the others."""
        names = sorted(self._core.links) if WILDCARD in hosts else list(dict.fromkeys(hosts))
        if not names:
            raise invalid_field("hosts", "at least one host is required", *sorted(self._core.links))

        async def one(host: str) -> HostPlan:
            try:
                return await self._plan(host, guest_id or "plan", draft, "")
            except VirtdError as error:
                return HostPlan(f"hosts/{host}", error=error.record)

        return await asyncio.gather(*(one(host) for host in names))

    async def _plan(self, host: str, guest_id: str, draft: GuestDraft, caller: str) -> HostPlan:
        check_new_id(guest_id, "guest_id")
        uid = uuid4()
        resolution, verdicts, warnings = await self._resolve(host, guest_id, draft, uid, caller)
        link = self._core.link(host)
        _, native = await lower(link, guest_id, uid, resolution)
        return HostPlan(
            f"hosts/{host}", native.native, link.backend.descriptor.native_format, verdicts, None, tuple(warnings)
        )

    async def resolve_draft(
        self, host: str, guest_id: str, draft: GuestDraft, uid: UUID, caller: str
    ) -> tuple[Resolution, Sequence[str]]:
        """Check a draft as create does, and make all choices; with what is to be said of it.  No side effect."""
        resolution, _, warnings = await self._resolve(host, guest_id, draft, uid, caller)
        return resolution, warnings

    async def _resolve(
        self, host: str, guest_id: str, draft: GuestDraft, uid: UUID, caller: str
    ) -> tuple[Resolution, tuple[FieldVerdict, ...], Sequence[str]]:
        link = self._core.link(host)
        check_texts(draft.display_name, draft.labels, draft.annotations)
        allowed = (*self._core.options.allowed_directories, *link.config.allowed_directories)
        resolution = await resolve(link, draft.spec, guest_id, uid, self._catalogue, allowed)
        answer = self._core.plugins.admit(AdmitRequest(caller, host, guest_id, resolution.spec))
        if answer.violations:
            raise InvalidArgumentError(
                FIELD_INVALID,
                "; ".join(f"{v.field}: {v.description}" for v in answer.violations),
                violations=answer.violations,
            )
        guest, plan = await lower(link, guest_id, uid, resolution)
        self._check_disks_free(host, guest)
        degraded = [f"{v.field}: {v.fidelity.value.lower()}: {v.reason}" for v in plan.verdicts]
        return resolution, plan.verdicts, [*answer.warnings, *degraded]

    def _check_disks_free(self, host: str, guest: ResolvedGuest) -> None:
        """Two guests that write to one disk destroy it.

        :raises FailedPreconditionError: VOLUME_IN_USE.
        """
        writers = {
            disk.path: view.guest.name
            for view in self._core.inventory.guests(host)
            for disk in view.guest.status.disks
            if disk.path and not disk.read_only
        } | {
            disk.path: trashed.entry.name
            for trashed in self._core.trash.owners(host)
            for disk in trashed.entry.guest.status.disks
            if disk.path and not disk.read_only
        }
        for index, disk in enumerate(guest.disks):
            if not disk.read_only and disk.path in writers:
                raise FailedPreconditionError(
                    VOLUME_IN_USE,
                    f"guest.spec.disks[{index}]: {disk.path} is a disk of {writers[disk.path]}",
                    resource=writers[disk.path],
                    metadata={"field": f"guest.spec.disks[{index}]", "used_by": writers[disk.path]},
                )

    def _check_name(self, host: str, guest_id: str) -> None:
        self._core.link(host)
        check_new_id(guest_id, "guest_id")
        self._check_free(host, guest_id)

    def _check_free(self, host: str, guest_id: str) -> None:
        self.check_taken(host, guest_id)
        if (host, guest_id) in self._creating:
            raise _exists(host, guest_id)

    def check_taken(self, host: str, guest_id: str) -> None:
        """Refuse a name that a guest has, or will have.

        :raises AlreadyExistsError: GUEST_EXISTS.
        """
        if self._core.inventory.find(GuestName(host, guest_id)) is not None:
            raise _exists(host, guest_id)
        for operation in self._core.engine.current(str(GuestName(host, guest_id))):
            here = operation.target == str(GuestName(host, guest_id))
            if (operation.verb in _MAKES_GUESTS and here) or (operation.verb == _BRINGS_GUESTS and not here):
                raise _exists(host, guest_id)

    # --------------------------------------------------------------------------- update and delete

    async def update(
        self,
        call: Call,
        name: GuestName,
        display_name: str | None,
        labels: Mapping[str, str] | None,
        annotations: Mapping[str, str] | None,
        etag: str,
    ) -> GuestView:
        """Change what the user says of a guest; not an operation, for it is done at once.

        :raises ConflictError: ETAG_MISMATCH.
        :raises FailedPreconditionError: GUEST_NOT_ADOPTED.
        """
        async with self._updating:  # between the etag's check and the change there is a wait for the disk
            view = self._core.view(name)
            if view.guest.status.origin is Origin.FOREIGN:
                raise FailedPreconditionError(
                    GUEST_NOT_ADOPTED,
                    f"{name.guest} was defined outside virtd; adopt it first",
                    resource=str(name),
                    allowed_actions=("adopt",),
                )
            _check_etag(view.guest, etag)

            def edit(guest: Guest) -> Guest:
                return replace(
                    guest,
                    display_name=guest.display_name if display_name is None else display_name,
                    labels=guest.labels if labels is None else dict(labels),
                    annotations=guest.annotations if annotations is None else dict(annotations),
                )

            edited = edit(view.guest)
            check_texts(edited.display_name, edited.labels, edited.annotations)
            if call.validate_only or edited == view.guest:
                return view
            return await self._core.inventory.change(view.guest.uid, edit)

    @once
    async def delete(
        self,
        call: Call,
        name: GuestName,
        force: bool,
        keep_disks: bool,
        etag: str,
        disk_policy: DiskPolicy | None = None,
    ) -> Operation | None:
        """Delete a guest; see the RPC's documentation for the errors."""
        if keep_disks and disk_policy not in (None, DiskPolicy.KEEP):
            raise invalid_field("disk_policy", f"{disk_policy} contradicts keep_disks", DiskPolicy.KEEP.value)
        await self._core.settled(name.host)
        view = self._core.check_verb(name, "delete")
        guest = view.guest
        _check_etag(guest, etag)
        check_unprotected(guest)
        policy = disk_policy or (DiskPolicy.KEEP if keep_disks else self._trash_policy(guest))
        if policy is DiskPolicy.TRASH:
            cap.require(self._core.link(name.host).capabilities, cap.TRASH, resource=str(name))
            if guest.status.presence is Presence.ABSENT:
                raise invalid_state(guest, "move to the trash")
        down = (GuestState.STOPPED, GuestState.CRASHED, GuestState.SUSPENDED)
        if not force and guest.status.state not in down and guest.status.presence is not Presence.ABSENT:
            raise invalid_state(guest, "delete (without force)")
        if call.validate_only:
            return None
        arguments = DeleteArguments(
            name.host,
            name.guest,
            guest.uid,
            force=force,
            keep_disks=policy is DiskPolicy.KEEP,
            volumes=view.owned_volumes,
            trash=entry_id(guest) if policy is DiskPolicy.TRASH else "",
            retention_s=self._core.options.trash_retention_s,
        )
        return await self._core.engine.submit(self._delete, arguments, submission(call, str(name), str(name)))

    def _trash_policy(self, guest: Guest) -> DiskPolicy:
        """What the configuration says, where it can be done."""
        policy = self._core.options.on_delete
        if policy is DiskPolicy.TRASH and guest.status.presence is Presence.ABSENT:
            return DiskPolicy.DELETE  # nothing is left that could be brought back
        return policy


def _holds(guest: Guest, state: GuestState | None, condition: ConditionType | None) -> bool:
    if state is not None:
        return guest.status.state is state
    return any(c.type is condition and c.status is ConditionStatus.TRUE for c in guest.status.conditions)


def _check_etag(guest: Guest, etag: str) -> None:
    if etag and etag != guest.etag:
        raise ConflictError(
            ETAG_MISMATCH,
            f"{guest.name} has changed: its etag is {guest.etag}, not {etag}",
            resource=guest.name,
            metadata={"etag": guest.etag},
        )


def _exists(host: str, guest_id: str) -> AlreadyExistsError:
    return AlreadyExistsError(
        GUEST_EXISTS, f"there is a guest {guest_id} on {host} already", resource=str(GuestName(host, guest_id))
    )
