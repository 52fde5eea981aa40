"""virtd.v1.GuestService."""
# ruff: noqa: N802 - the methods have the RPCs' names

from __future__ import annotations

from dataclasses import replace
from typing import Final

from virtd.errors import invalid_field
from virtd.inventory import GuestView
from virtd.model.guest import ConditionType, GuestSpec, GuestState
from virtd.model.names import check_new_id, parse_guest, parse_host
from virtd.model.trash import CloneMode, DiskPolicy
from virtd.rpc.context import Context, current
from virtd.rpc.convert import enum_member, from_message, to_message
from virtd.rpc.convert.wire import nested, repeated, tag
from virtd.rpc.servicers.base import call_of
from virtd.rpc.servicers.updating import UpdatingServicer, spec_paths, update_of
from virtd.service.clones import CloneDraft
from virtd.service.guests import GuestDraft
from virtd.v1 import capability_pb2
from virtd.v1 import guest_service_pb2 as pb

_MUTABLE: Final = ("display_name", "labels", "annotations")
_WAIT_DEFAULT_S: Final = 60.0
_PLANNED_ID: Final = "plan"

_GUEST_OF_GET: Final = tag(pb.GetGuestResponse.DESCRIPTOR, "guest")
_GUEST_OF_UPDATE: Final = tag(pb.UpdateGuestResponse.DESCRIPTOR, "guest")
_GUEST_OF_WAIT: Final = tag(pb.WaitGuestResponse.DESCRIPTOR, "guest")
_GUESTS_OF_LIST: Final = tag(pb.ListGuestsResponse.DESCRIPTOR, "guests")


class GuestServicer(UpdatingServicer):
    """Guests of all hosts.  Answers that hold guests are made of their cached encodings."""

    async def CreateGuest(self, request: pb.CreateGuestRequest, _context: Context) -> pb.CreateGuestResponse:
        """Create a guest, or plan it."""
        host, guest_id = parse_host(request.parent, "parent"), check_new_id(request.guest_id, "guest_id")
        draft, call = _draft(request), call_of(request)
        if request.validate_only:
            plan = await self.services.guests.plan_one(host, guest_id, draft, call.caller)
            return pb.CreateGuestResponse(plan=to_message(plan, pb.HostPlan))
        operation = await self.services.guests.create(call, host, guest_id, draft, request.start)
        return pb.CreateGuestResponse(operation=await self.started(operation))

    async def GetGuest(self, request: pb.GetGuestRequest, _context: Context) -> bytes:
        """One guest."""
        return nested(_GUEST_OF_GET, self.services.guests.get(parse_guest(request.name)).encoded)

    async def ListGuests(self, request: pb.ListGuestsRequest, _context: Context) -> bytes:
        """Guests of one host or of all."""
        host = parse_host(request.parent, "parent", wildcard=True)
        page = await self.services.guests.list(host, request.filter, request.page_size, request.page_token)
        rest = pb.ListGuestsResponse(
            next_page_token=page.next_page_token,
            resume_token=page.resume_token,
            host_errors=[
                pb.HostError(host=name, error=to_message(error, capability_pb2.ErrorRecord))
                for name, error in page.host_errors
            ],
        )
        return repeated(_GUESTS_OF_LIST, (view.encoded for view in page.views), rest.SerializeToString())

    async def UpdateGuest(self, request: pb.UpdateGuestRequest, _context: Context) -> bytes:
        """Change a guest: at once where the spec is not concerned, else by an operation."""
        name = parse_guest(request.guest.name, "guest.name")
        guest, changed = request.guest, _changed(request)
        if spec_paths(changed):
            asked = replace(
                update_of(request, changed),
                allow_replace=request.allow_replace,
                delete_removed_disks=request.delete_removed_disks,
                force_eject=request.force_eject,
                etag=request.etag,
            )
            response = pb.UpdateGuestResponse()
            await self.changed(call_of(request), name, asked, response)
            return response.SerializeToString()
        view = await self.services.guests.update(
            call_of(request),
            name,
            display_name=guest.display_name if "display_name" in changed else None,
            labels=dict(guest.labels) if "labels" in changed else None,
            annotations=dict(guest.annotations) if "annotations" in changed else None,
            etag=request.etag,
        )
        return nested(_GUEST_OF_UPDATE, view.encoded)

    async def DeleteGuest(self, request: pb.DeleteGuestRequest, _context: Context) -> pb.DeleteGuestResponse:
        """Delete a guest."""
        operation = await self.services.guests.delete(
            call_of(request),
            parse_guest(request.name),
            force=request.force,
            keep_disks=request.keep_disks,
            etag=request.etag,
            disk_policy=enum_member(request, "disk_policy", DiskPolicy),
        )
        return pb.DeleteGuestResponse(operation=await self.started(operation))

    async def StartGuest(self, request: pb.StartGuestRequest, _context: Context) -> pb.StartGuestResponse:
        """Start, or restore from suspension."""
        operation = await self.services.guests.start(call_of(request), parse_guest(request.name))
        return pb.StartGuestResponse(operation=await self.started(operation))

    async def ShutdownGuest(self, request: pb.ShutdownGuestRequest, _context: Context) -> pb.ShutdownGuestResponse:
        """Ask the guest's system to shut down."""
        operation = await self.services.guests.shutdown(
            call_of(request),
            parse_guest(request.name),
            timeout_s=request.timeout_s,
            force_after_timeout=request.force_after_timeout,
        )
        return pb.ShutdownGuestResponse(operation=await self.started(operation))

    async def StopGuest(self, request: pb.StopGuestRequest, _context: Context) -> pb.StopGuestResponse:
        """Cut the power."""
        operation = await self.services.guests.stop(call_of(request), parse_guest(request.name))
        return pb.StopGuestResponse(operation=await self.started(operation))

    async def RebootGuest(self, request: pb.RebootGuestRequest, _context: Context) -> pb.RebootGuestResponse:
        """Ask the guest's system to reboot."""
        operation = await self.services.guests.reboot(call_of(request), parse_guest(request.name))
        return pb.RebootGuestResponse(operation=await self.started(operation))

    async def ResetGuest(self, request: pb.ResetGuestRequest, _context: Context) -> pb.ResetGuestResponse:
        """Press the reset button."""
        operation = await self.services.guests.reset(call_of(request), parse_guest(request.name))
        return pb.ResetGuestResponse(operation=await self.started(operation))

    async def PauseGuest(self, request: pb.PauseGuestRequest, _context: Context) -> pb.PauseGuestResponse:
        """Stop the virtual CPUs."""
        operation = await self.services.guests.pause(call_of(request), parse_guest(request.name))
        return pb.PauseGuestResponse(operation=await self.started(operation))

    async def ResumeGuest(self, request: pb.ResumeGuestRequest, _context: Context) -> pb.ResumeGuestResponse:
        """Continue a paused guest."""
        operation = await self.services.guests.resume(call_of(request), parse_guest(request.name))
        return pb.ResumeGuestResponse(operation=await self.started(operation))

    async def SuspendGuest(self, request: pb.SuspendGuestRequest, _context: Context) -> pb.SuspendGuestResponse:
        """Save to disk and stop."""
        operation = await self.services.guests.suspend(call_of(request), parse_guest(request.name))
        return pb.SuspendGuestResponse(operation=await self.started(operation))

    async def DiscardSavedState(
        self, request: pb.DiscardSavedStateRequest, _context: Context
    ) -> pb.DiscardSavedStateResponse:
        """Throw saved memory away."""
        operation = await self.services.guests.discard(call_of(request), parse_guest(request.name))
        return pb.DiscardSavedStateResponse(operation=await self.started(operation))

    async def CloneGuest(self, request: pb.CloneGuestRequest, _context: Context) -> pb.CloneGuestResponse:
        """Clone a stopped guest, or plan it."""
        call, name = call_of(request), parse_guest(request.name)
        draft = CloneDraft(
            guest_id=check_new_id(request.guest_id, "guest_id"),
            mode=enum_member(request, "mode", CloneMode) or CloneMode.FULL,
            pool=request.pool,
            start=request.start,
            display_name=request.display_name,
            labels=dict(request.labels),
            annotations=dict(request.annotations),
        )
        if request.validate_only:
            plan = await self.services.clones.plan(call, name, draft)
            return pb.CloneGuestResponse(plan=to_message(plan, pb.HostPlan))
        operation = await self.services.clones.clone(call, name, draft)
        return pb.CloneGuestResponse(operation=await self.started(operation))

    async def ReleaseGuest(self, request: pb.ReleaseGuestRequest, _context: Context) -> pb.ReleaseGuestResponse:
        """Let go of a guest."""
        operation = await self.services.guests.release(call_of(request), parse_guest(request.name))
        return pb.ReleaseGuestResponse(operation=await self.started(operation))

    async def AdoptGuest(self, request: pb.AdoptGuestRequest, _context: Context) -> pb.AdoptGuestResponse:
        """Take a foreign guest under management."""
        operation = await self.services.guests.adopt(call_of(request), parse_guest(request.name))
        return pb.AdoptGuestResponse(operation=await self.started(operation))

    async def PlanGuest(self, request: pb.PlanGuestRequest, _context: Context) -> pb.PlanGuestResponse:
        """What a spec would become, or what an update would do."""
        if request.name:
            return await self._plan_named(request)
        if not request.hosts:
            raise invalid_field("hosts", "is required: the names of hosts, or hosts/- for all")
        hosts = [parse_host(name, f"hosts[{index}]", wildcard=True) for index, name in enumerate(request.hosts)]
        guest_id = check_new_id(request.guest_id or _PLANNED_ID, "guest_id")
        plans = await self.services.guests.plan(hosts, guest_id, _draft(request))
        return pb.PlanGuestResponse(plans=[to_message(plan, pb.HostPlan) for plan in plans])

    async def _plan_named(self, request: pb.PlanGuestRequest) -> pb.PlanGuestResponse:
        """What CreateGuest or UpdateGuest would do, whichever is the one that would succeed."""
        name, draft = parse_guest(request.name), _draft(request)
        if request.hosts or request.guest_id:
            raise invalid_field("name", "stands instead of hosts and guest_id: give one or the other")
        said = (field for field in _MUTABLE if getattr(request.guest, field))
        paths = tuple(request.update_fields) or ("spec", *said)
        for index, field in enumerate(paths):
            _check_path(field, index)
        plan = await self.services.updates.plan_named(
            call_of(request),
            name,
            update_of(request, paths),
            lambda: self.services.guests.plan([name.host], name.guest, draft),
        )
        return pb.PlanGuestResponse(plans=[to_message(plan, pb.HostPlan)])

    async def WaitGuest(self, request: pb.WaitGuestRequest, _context: Context) -> bytes:
        """Wait until a condition or state holds."""
        name, target = parse_guest(request.name), request.WhichOneof("target")
        state = enum_member(request, "state", GuestState) if target == "state" else None
        condition = enum_member(request, "condition", ConditionType) if target == "condition" else None
        if state is None and condition is None and target != "deleted":
            raise invalid_field(target or "target", "is required: a state, a condition, or deleted")
        view: GuestView | None = await self.services.guests.wait(
            name,
            state=state,
            condition=condition,
            deleted=target == "deleted",
            timeout_s=current().within_deadline(request.timeout_s or _WAIT_DEFAULT_S),
        )
        return b"" if view is None else nested(_GUEST_OF_WAIT, view.encoded)


def _draft(request: pb.CreateGuestRequest | pb.PlanGuestRequest) -> GuestDraft:
    """The parts of a guest that a client may choose; the rest is output only and ignored."""
    if not request.HasField("guest"):
        raise invalid_field("guest", "is required")
    guest = request.guest
    if not guest.HasField("spec"):
        raise invalid_field("guest.spec", "is required")
    return GuestDraft(
        spec=from_message(guest.spec, GuestSpec, "guest.spec"),
        display_name=guest.display_name,
        labels=dict(guest.labels),
        annotations=dict(guest.annotations),
    )


def _changed(request: pb.UpdateGuestRequest) -> tuple[str, ...]:
    for index, field in enumerate(request.update_fields):
        _check_path(field, index)
    return tuple(request.update_fields) or _MUTABLE


def _check_path(field: str, index: int) -> None:
    if field not in _MUTABLE and not spec_paths((field,)):
        raise invalid_field(f"update_fields[{index}]", f"{field[:80]!r} cannot be changed", *_MUTABLE, "spec")
