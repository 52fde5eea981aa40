"""Use cases of guests: is it allowed, can the host do it, then an operation."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
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
    UnsupportedError,
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
)
from virtd.model.host import CapabilityLevel
from virtd.model.names import WILDCARD, GuestName, check_new_id
from virtd.model.operation import Operation
from virtd.operations import Verb
from virtd.service.call import Call, page_of
from virtd.service.core import Core, attributes_of, invalid_state, once, submission
from virtd.service.filters import compile_filter
from virtd.service.images import ImageCatalogue
from virtd.service.resolve import Resolution, lower, resolve
from virtd.service.validate import check_texts
from virtd.service.verbs.base import GuestArguments
from virtd.service.verbs.create import CreateArguments, CreateGuest, DeleteArguments, DeleteGuest
from virtd.service.verbs.lifecycle import (
    RebootArguments,
    ShutdownArguments,
    lifecycle_verbs,
)

FILTER_FIELDS: Final = (
    "name", "uid", "display_name", "status.state", "status.state_reason", "status.origin", "status.presence",
    "spec.vcpus", "spec.memory_bytes", "labels.*",
)  # fmt: skip
SHUTDOWN_MAX_S: Final = 24 * 3600.0
WAIT_DEFAULT_S: Final = 60.0
RECENT_S: Final = 1.0

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


@dataclass(frozen=True, slots=True)
class GuestPage:
    """One page of guests, the hosts that do not answer, and from where to watch."""

    views: tuple[GuestView, ...]
    next_page_token: str
    host_errors: tuple[tuple[str, ErrorRecord], ...]
    resume_token: str


class Guests:
    """Use cases of guests."""

    def __init__(self, core: Core, catalogue: ImageCatalogue) -> None:
        self._core = core
        self._catalogue = catalogue
        self._create = CreateGuest(core)
        self._delete = DeleteGuest(core)
        core.engine.register(self._create)
        core.engine.register(self._delete)
        self._verbs = {verb.name: verb for verb in lifecycle_verbs(core)}
        for verb in self._verbs.values():
            core.engine.register(verb)
        self._creating: set[tuple[str, str]] = set()
        self._updating = asyncio.Lock()

    # ------------------------------------------------------------------------------------ reading

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
        key = (host, guest_id)
        uid = uuid4()
        self._check_name(host, guest_id)
        # From here to the journal row there are awaits: two creates of one name must not both pass.
        self._creating.add(key)
        try:
            resolution, _, warnings = await self._resolve(host, guest_id, draft, uid, call.caller)
            self._check_taken(host, guest_id)
            arguments = CreateArguments(
                host=host,
                guest=guest_id,
                uid=uid,
                spec=resolution.spec,
                display_name=draft.display_name,
                labels=dict(draft.labels),
                annotations=dict(draft.annotations),
                volumes=resolution.volumes,
                accelerator=resolution.accelerator,
                accelerator_reason=resolution.accelerator_reason,
                start=start,
            )
            name = str(GuestName(host, guest_id))
            return await self._core.engine.submit(self._create, arguments, submission(call, name, name, warnings))
        finally:
            self._creating.discard(key)

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
        self._check_taken(host, guest_id)
        if (host, guest_id) in self._creating:
            raise _exists(host, guest_id)

    def _check_taken(self, host: str, guest_id: str) -> None:
        if self._core.inventory.find(GuestName(host, guest_id)) is not None:
            raise _exists(host, guest_id)
        for operation in self._core.engine.current(str(GuestName(host, guest_id))):
            if operation.verb == "create":
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
    async def delete(self, call: Call, name: GuestName, force: bool, keep_disks: bool, etag: str) -> Operation | None:
        """Delete a guest; see the RPC's documentation for the errors."""
        await self._core.settled(name.host)
        view = self._core.check_verb(name, "delete")
        guest = view.guest
        _check_etag(guest, etag)
        down = (GuestState.STOPPED, GuestState.CRASHED, GuestState.SUSPENDED)
        if not force and guest.status.state not in down and guest.status.presence is not Presence.ABSENT:
            raise invalid_state(guest, "delete (without force)")
        if call.validate_only:
            return None
        arguments = DeleteArguments(
            name.host, name.guest, guest.uid, force=force, keep_disks=keep_disks, volumes=view.owned_volumes
        )
        return await self._core.engine.submit(self._delete, arguments, submission(call, str(name), str(name)))

    # --------------------------------------------------------------------------------------- verbs

    async def start(self, call: Call, name: GuestName) -> Operation | None:
        """Start, or restore."""
        return await self._simple(call, name, "start")

    async def stop(self, call: Call, name: GuestName) -> Operation | None:
        """Cut the power."""
        return await self._simple(call, name, "stop")

    async def reset(self, call: Call, name: GuestName) -> Operation | None:
        """The reset button."""
        return await self._simple(call, name, "reset")

    async def pause(self, call: Call, name: GuestName) -> Operation | None:
        """Stop the virtual CPUs."""
        return await self._simple(call, name, "pause")

    async def resume(self, call: Call, name: GuestName) -> Operation | None:
        """Continue the virtual CPUs."""
        return await self._simple(call, name, "resume")

    async def suspend(self, call: Call, name: GuestName) -> Operation | None:
        """Save to disk and stop."""
        return await self._simple(call, name, "suspend")

    async def shutdown(
        self, call: Call, name: GuestName, timeout_s: float, force_after_timeout: bool
    ) -> Operation | None:
        """Ask the guest's system to shut down."""
        if not 0 <= timeout_s <= SHUTDOWN_MAX_S:
            raise invalid_field("timeout_s", f"must be 0 (the default) to {SHUTDOWN_MAX_S:g}, not {timeout_s:g}")
        wait_s = timeout_s or self._core.options.shutdown_timeout_s
        return await self._submit(
            call,
            name,
            "shutdown",
            lambda uid: ShutdownArguments(name.host, name.guest, uid, wait_s=wait_s, force=force_after_timeout),
        )

    async def reboot(self, call: Call, name: GuestName) -> Operation | None:
        """Ask the guest's system to reboot, or emulate it by shutdown and start."""
        await self._core.settled(name.host)
        link = self._core.link(name.host)
        try:
            native = cap.require(link.capabilities, cap.REBOOT).level is CapabilityLevel.NATIVE
        except UnsupportedError as error:
            native = False
            try:
                cap.require(link.capabilities, cap.SHUTDOWN)
            except UnsupportedError:
                self._core.view(name)
                raise error.with_resource(str(name)) from None
        wait_s = self._core.options.shutdown_timeout_s
        return await self._submit(
            call,
            name,
            "reboot",
            lambda uid: RebootArguments(name.host, name.guest, uid, wait_s=wait_s, emulated=not native),
        )

    async def adopt(self, call: Call, name: GuestName) -> Operation | None:
        """Take a foreign guest under management."""
        return await self._simple(call, name, "adopt", managed=False)

    async def _simple(self, call: Call, name: GuestName, verb: str, *, managed: bool = True) -> Operation | None:
        return await self._submit(
            call, name, verb, lambda uid: GuestArguments(name.host, name.guest, uid), managed=managed
        )

    @once
    async def _submit(
        self,
        call: Call,
        name: GuestName,
        verb: str,
        make: Callable[[UUID], GuestArguments],
        *,
        managed: bool = True,
    ) -> Operation | None:
        await self._core.settled(name.host)
        view = self._core.check_verb(name, verb, managed=managed, now=not self._core.engine.current(str(name)))
        if call.validate_only:
            return None
        implementation: Verb[GuestArguments] = self._verbs[verb]  # type: ignore[assignment]  # its own arguments
        return await self._core.engine.submit(
            implementation, make(view.guest.uid), submission(call, str(name), str(name))
        )


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
