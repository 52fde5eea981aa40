"""Use cases of changing a guest's spec: what would become of each field, then an operation that does it."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from virtd.backend import capabilities as cap
from virtd.backend.api import FieldEffect, UpdateEffect
from virtd.backend.hookspecs import AdmitRequest
from virtd.errors import (
    ETAG_MISMATCH,
    FIELD_INVALID,
    FIELD_UNSUPPORTED,
    REPLACE_REQUIRED,
    VOLUME_IN_USE,
    ConflictError,
    FailedPreconditionError,
    FieldViolation,
    InvalidArgumentError,
    VirtdError,
    unsupported,
)
from virtd.inventory import GuestView, HostLink
from virtd.model.changes import Change, diff, entry_of, touches
from virtd.model.guest import Guest, GuestSpec, GuestState
from virtd.model.names import GuestName
from virtd.model.operation import Operation
from virtd.model.snapshot import COPY
from virtd.service.call import Call
from virtd.service.catalogue import ImageCatalogue
from virtd.service.changes import FieldChange, UpdatePlan, merged
from virtd.service.changes import without_secrets as shown_data
from virtd.service.cloud_init import without_secrets
from virtd.service.core import Core, invalid_state, once, submission
from virtd.service.guests import HostPlan
from virtd.service.update_resolve import Pair, check_disks_free, resolve_pair, settled
from virtd.service.validate import check_texts
from virtd.service.verbs.update import (
    ACTIVE,
    UpdateArguments,
    UpdateGuest,
    UpdateMode,
    UpdateRequest,
    restart_required,
)

_E: Final = UpdateEffect
_OFF: Final = (GuestState.STOPPED, GuestState.CRASHED)
OWN_EFFECTS: Final[Mapping[str, tuple[UpdateEffect, str]]] = {
    "spec.run_strategy": (_E.LIVE, ""),
    "spec.deletion_protection": (_E.LIVE, ""),
    "spec.cloud_init": (_E.NONE, "cloud-init has worked at the first boot; its seed stays as it was"),
}
"""What virtd itself keeps: no hypervisor is asked."""


@dataclass(frozen=True, slots=True)
class _Prepared:
    arguments: UpdateArguments
    effects: tuple[FieldEffect, ...]
    changes: tuple[Change, ...]
    warnings: tuple[str, ...] = ()


class Updates:
    """Use cases of updates."""

    def __init__(self, core: Core, catalogue: ImageCatalogue) -> None:
        self._core = core
        self._catalogue = catalogue
        self._verb = UpdateGuest(core, self._replan)
        core.engine.register(self._verb)

    @once
    async def update(self, call: Call, name: GuestName, request: UpdateRequest) -> Operation:
        """Change a guest; see the RPC's documentation for the errors."""
        prepared = await self._prepare(call.caller, name, request)
        self._refuse(self._core.view(name).guest, prepared, request)
        target = str(name)
        return await self._core.engine.submit(
            self._verb, prepared.arguments, submission(call, target, target, prepared.warnings)
        )

    async def plan(self, call: Call, name: GuestName, request: UpdateRequest) -> UpdatePlan:
        """What :meth:`update` would do.  No side effect.

        :raises VirtdError: what is wrong with the request, whatever the guest's state.
        """
        prepared = await self._prepare(call.caller, name, request)
        arguments, link = prepared.arguments, self._core.link(name.host)
        native = ""
        facet = link.facets.update
        if arguments.current is not None and arguments.wanted is not None and facet is not None:
            replaced = any(entry.effect is _E.REPLACE for entry in prepared.effects)
            native = (
                link.session.lower(arguments.wanted).native
                if replaced
                else await link.call(facet.native_config(arguments.current, arguments.wanted))
            )
        effects = {entry.field: entry for entry in prepared.effects}
        return UpdatePlan(
            name=str(name),
            changes=tuple(
                FieldChange(
                    change.field,
                    _json(change.old),
                    _json(change.new),
                    effects[change.field].effect,
                    effects[change.field].reason,
                )
                for change in prepared.changes
            ),
            native=native,
            native_format=link.backend.descriptor.native_format if native else "",
            warnings=prepared.warnings,
        )

    async def plan_named(
        self, call: Call, name: GuestName, request: UpdateRequest, plan_new: Callable[[], Awaitable[Sequence[HostPlan]]]
    ) -> HostPlan:
        """What an update of this guest would do or, where there is none, what ``plan_new`` says of a creation.

        What is wrong with the request is the plan's error.
        """
        self._core.link(name.host)
        if self._core.inventory.find(name) is None:
            (plan,) = await plan_new()
            return plan
        try:
            return HostPlan(f"hosts/{name.host}", update=await self.plan(call, name, request))
        except VirtdError as error:
            return HostPlan(f"hosts/{name.host}", error=error.record, update=UpdatePlan(str(name)))

    # ------------------------------------------------------------------------------------- prepare

    async def _replan(self, caller: str, name: GuestName, request: UpdateRequest) -> UpdateArguments:
        prepared = await self._prepare(caller, name, request)
        self._refuse(self._core.view(name).guest, prepared, request)
        return prepared.arguments

    async def _prepare(self, caller: str, name: GuestName, request: UpdateRequest) -> _Prepared:
        await self._core.settled(name.host)
        view = self._core.check_verb(name, "update")
        guest, link = view.guest, self._core.link(name.host)
        _check_etag(guest, request.etag)
        check_texts(
            guest.display_name if request.display_name is None else request.display_name,
            guest.labels if request.labels is None else request.labels,
            guest.annotations if request.annotations is None else request.annotations,
        )
        wanted = without_secrets(merged(guest.spec, request.spec, request.present, request.paths))
        arguments = UpdateArguments(
            host=name.host,
            guest=name.guest,
            uid=guest.uid,
            # No secret of a first boot that is over lies about.
            request=None if request.etag else replace(request, spec=without_secrets(request.spec)),
            etag=guest.etag,
            spec=wanted,
            display_name=request.display_name,
            labels=None if request.labels is None else dict(request.labels),
            annotations=None if request.annotations is None else dict(request.annotations),
            mode=request.mode,
            replace=False,
            force_eject=request.force_eject,
        )
        if wanted == guest.spec:
            return _Prepared(arguments, (), ())
        wanted = settled(guest.spec, wanted, link.host.facts.guest_defaults)
        pair = None
        if any(not touches(change.field, *OWN_EFFECTS) for change in diff(guest.spec, wanted)):
            pair = await self._pair(link, guest, wanted)
            wanted = without_secrets(pair.spec)
        warnings = self._admit(caller, name, wanted)
        changes = diff(guest.spec, wanted)
        effects = await self._effects(link, guest, pair, changes, request)
        arguments = replace(arguments, spec=wanted)
        if pair is not None:
            arguments = replace(
                arguments,
                current=pair.current,
                wanted=pair.wanted,
                accelerator_reason=pair.accelerator_reason,
                fields=tuple(c.field for c in changes if not touches(c.field, "spec.autostart", *OWN_EFFECTS)),
                volumes=pair.volumes,
                sizes=dict(pair.sizes),
                replace=any(entry.effect is _E.REPLACE for entry in effects),
                autostart=wanted.autostart if wanted.autostart is not guest.spec.autostart else None,
            )
            released = await self._released(link, view, pair)
            arguments = replace(arguments, released=released, deleted=released if request.delete_removed_disks else ())
            self._check_deletable(guest, effects, arguments)
            await self._check_no_snapshots(link, guest, arguments)
        nothing = [f"{entry.field}: {entry.reason}" for entry in effects if entry.effect is _E.NONE]
        return _Prepared(arguments, tuple(effects), changes, (*warnings, *nothing))

    async def _pair(self, link: HostLink, guest: Guest, wanted: GuestSpec) -> Pair:
        cap.require(link.capabilities, cap.UPDATE, resource=guest.name)
        facet = link.facets.update
        if facet is None:
            raise unsupported(cap.UPDATE, "the backend does not offer it", resource=guest.name)
        allowed = (*self._core.options.allowed_directories, *link.config.allowed_directories)
        disks = await link.call(facet.configured_disks(guest.uid))
        pair = await resolve_pair(link, guest, wanted, disks, self._catalogue, allowed)
        check_disks_free(self._core.inventory, link.id, pair.current, pair.wanted)
        return pair

    def _admit(self, caller: str, name: GuestName, wanted: GuestSpec) -> tuple[str, ...]:
        answer = self._core.plugins.admit(AdmitRequest(caller, name.host, name.guest, wanted))
        if answer.violations:
            raise InvalidArgumentError(
                FIELD_INVALID,
                "; ".join(f"{v.field}: {v.description}" for v in answer.violations),
                violations=answer.violations,
            )
        return tuple(answer.warnings)

    async def _effects(
        self, link: HostLink, guest: Guest, pair: Pair | None, changes: Sequence[Change], request: UpdateRequest
    ) -> tuple[FieldEffect, ...]:
        known: dict[str, FieldEffect] = {}
        for change in changes:
            own = next((OWN_EFFECTS[path] for path in OWN_EFFECTS if touches(change.field, path)), None)
            if own is not None:
                known[change.field] = FieldEffect(change.field, *own)
            elif change.field == "spec.autostart":
                known[change.field] = self._autostart(link)
        asked = [change.field for change in changes if change.field not in known]
        facet = link.facets.update
        if asked and pair is not None and facet is not None:
            for entry in await link.call(facet.plan_update(pair.current, pair.wanted, asked)):
                known[entry.field] = _in_mode(entry, guest, request.mode)
        return tuple(known[change.field] for change in changes)

    @staticmethod
    def _autostart(link: HostLink) -> FieldEffect:
        if link.facets.autostart is None:
            return FieldEffect("spec.autostart", _E.REJECTED, "the host does not start guests by itself")
        return FieldEffect("spec.autostart", _E.LIVE)

    async def _released(self, link: HostLink, view: GuestView, pair: Pair) -> tuple[str, ...]:
        """The volumes of the guest's own whose disks go, as ``pool/volume``."""
        gone = {disk.path for disk in pair.current.disks} - {disk.path for disk in pair.wanted.disks}
        storage = link.facets.storage
        if not gone or storage is None:
            return ()
        found = []
        for volume in view.owned_volumes:
            pool, _, name = volume.partition("/")
            if await link.call(storage.volume_path(pool, name)) in gone:
                found.append(volume)
        return tuple(found)

    def _check_deletable(self, guest: Guest, effects: Sequence[FieldEffect], arguments: UpdateArguments) -> None:
        """A file is deleted only when no process can have it open, and no saved memory expects it."""
        if not arguments.deleted or guest.status.state in _OFF:
            return
        removed = [disk.name for disk in guest.spec.disks if entry_of(arguments.spec, "disks", disk.name) is None]
        waiting = [f"spec.disks[{name}]" for name in removed]
        late = [
            (entry.field, entry.reason) for entry in effects if entry.field in waiting and entry.effect is not _E.LIVE
        ]
        if late:
            raise restart_required(guest.name, late)

    async def _check_no_snapshots(self, link: HostLink, guest: Guest, arguments: UpdateArguments) -> None:
        """A snapshot that was taken while the disk was there cannot be gone back to without it: but for copies."""
        snapshots = link.facets.snapshots
        if not arguments.deleted or snapshots is None:
            return
        taken = await link.call(snapshots.list_snapshots(guest.uid))
        if names := [snapshot.name for snapshot in taken if snapshot.location != COPY]:
            raise FailedPreconditionError(
                VOLUME_IN_USE,
                f"snapshots of {guest.name} may need {', '.join(arguments.deleted)}: {', '.join(names)}; "
                "delete them first, or detach the disk and keep its volume",
                resource=guest.name,
                metadata={"snapshots": ",".join(names)},
            )

    def _refuse(self, guest: Guest, prepared: _Prepared, request: UpdateRequest) -> None:
        """What must not be begun."""
        effects = prepared.effects
        rejected = [entry for entry in effects if entry.effect is _E.REJECTED]
        if rejected:
            raise InvalidArgumentError(
                FIELD_UNSUPPORTED,
                "; ".join(f"guest.{entry.field}: {entry.reason}" for entry in rejected),
                resource=guest.name,
                violations=tuple(FieldViolation(f"guest.{entry.field}", entry.reason) for entry in rejected),
            )
        replaced = [entry for entry in effects if entry.effect is _E.REPLACE]
        if replaced and not request.allow_replace:
            raise FailedPreconditionError(
                REPLACE_REQUIRED,
                "; ".join(f"{entry.field}: {entry.reason}" for entry in replaced),
                resource=guest.name,
                metadata={"fields": ",".join(entry.field for entry in replaced)},
            )
        if replaced and guest.status.state not in _OFF:
            raise invalid_state(guest, "replace")
        waiting = [(entry.field, entry.reason) for entry in effects if entry.effect is _E.NEXT_BOOT]
        if request.mode is UpdateMode.LIVE_ONLY and waiting and guest.status.state in ACTIVE:
            raise restart_required(guest.name, waiting)


def _in_mode(entry: FieldEffect, guest: Guest, mode: UpdateMode) -> FieldEffect:
    if mode is not UpdateMode.NEXT_BOOT or entry.effect is not _E.LIVE or guest.status.state not in ACTIVE:
        return entry
    if entry.field.endswith(".capacity_bytes"):
        return FieldEffect(entry.field, _E.REJECTED, "a disk's size changes at once; it cannot wait for a start")
    return FieldEffect(entry.field, _E.NEXT_BOOT, "as asked")


def _check_etag(guest: Guest, etag: str) -> None:
    if etag and etag != guest.etag:
        raise ConflictError(
            ETAG_MISMATCH,
            f"{guest.name} has changed: its etag is {guest.etag}, not {etag}",
            resource=guest.name,
            metadata={"etag": guest.etag},
        )


def _json(value: object) -> str:
    return "" if value is None else json.dumps(shown_data(value), sort_keys=True)
